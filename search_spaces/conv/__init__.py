"""One search space for each convolution algorithm, at the same path as in `kernels/conv`."""

import os

from fastrun.kernels.conv import OWN_FOLDERS

__path__ += [os.path.join(folder, "search_spaces", "conv") for folder in OWN_FOLDERS]
