"""One candidate measured: compiled, verified, timed, in a process that may die."""
