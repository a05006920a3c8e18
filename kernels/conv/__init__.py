"""Every file here is one convolution algorithm."""
