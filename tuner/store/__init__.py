"""What is remembered: the database, its schema, exchange formats, and where each problem stands."""
