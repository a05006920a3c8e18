"""One search space for each convolution algorithm, at the same path as in `kernels/conv`."""

import os

# Folders of own algorithms, outside of the toolkit: docs/adding.md.
_FOLDERS = os.environ.get("FASTRUN_ALGORITHMS", "").split(os.pathsep)
__path__ += [os.path.join(folder, "search_spaces", "conv") for folder in _FOLDERS if folder]
