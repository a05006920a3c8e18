"""Every file here is one convolution algorithm."""

import os

# One's own, outside of the toolkit: docs/adding.md.
_FOLDERS = os.environ.get("FASTRUN_ALGORITHMS", "").split(os.pathsep)
__path__ += [os.path.join(folder, "kernels", "conv") for folder in _FOLDERS if folder]
