"""The commands of `fastrun`, a file each.

A file's docstring is what `--help` says of the command, the first line of it in `fastrun --help`.
`options(parser)` declares the options, `run(arguments)` returns the exit code. As `fastrun --help`
imports all files, they import anything large inside their functions.
"""
