"""Our kernels and networks against other engines, in one process and in turns."""
