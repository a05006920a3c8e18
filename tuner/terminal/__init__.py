"""What the terminal shows: tables, the board of a run, exit codes."""
