"""The vocabulary: problems, layouts, processors, templates, and the float64 truth."""

import time

IMPORTED = time.time()
"""When this process began to import the package, in seconds since 1970."""
