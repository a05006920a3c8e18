"""PyTorch modules as networks: `fastrun.from_torch` and `torch.compile(backend="fastrun")`."""
