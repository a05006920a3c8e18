"""Code generation: IR that reads as loops, the register tile, machine code."""
