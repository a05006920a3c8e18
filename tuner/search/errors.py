"""What a search refuses."""


class SamplerError(ValueError):
    """A sampler that there is not, or that failed. The message is one line."""
