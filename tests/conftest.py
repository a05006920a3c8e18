"""Settings of all tests: what they keep lies apart, and on a busy machine they take longer."""

import os
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings

# Nothing is written into the user's cache. The folder stays, so that a second run compiles less.
_FOLDER = Path(tempfile.gettempdir(), f"fastrun-tests-{os.getuid()}")
os.environ.setdefault("FASTRUN_CACHE", str(_FOLDER))

settings.register_profile("any load", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any load")
