"""The terminal: tables, the board of a run, exit codes."""
