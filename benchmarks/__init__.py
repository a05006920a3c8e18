"""Kernels and networks of fastrun against other engines, timed in turns in one process."""
