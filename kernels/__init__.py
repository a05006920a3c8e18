"""Convolution kernels: what can run."""
