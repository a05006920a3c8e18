"""Every file or folder here is one convolution algorithm."""

import os

# Folders of algorithms outside of the toolkit: docs/adding.md.
OWN_FOLDERS = list(filter(None, os.environ.get("FASTRUN_ALGORITHMS", "").split(os.pathsep)))
__path__ += [os.path.join(folder, "kernels", "conv") for folder in OWN_FOLDERS]
