"""What a measurement is: records, environments, statistics, verdicts."""
