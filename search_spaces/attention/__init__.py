"""One search space for each algorithm of attention, at the same path as in `kernels/attention`."""
