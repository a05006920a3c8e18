"""One schedule is compiled, checked and timed, in a process that may die."""
