"""Everything a network needs besides convolutions.

Each file is one operator: a frozen spec that says what, and
`build(spec, cpu, src, dst) -> Program` for where its input and output lie.
"""
