"""What to try: one space per algorithm, same stem as in kernels/conv."""

import os

_FOLDERS = os.environ.get("FASTRUN_ALGORITHMS", "").split(os.pathsep)
__path__ += [os.path.join(folder, "search_spaces") for folder in _FOLDERS if folder]
