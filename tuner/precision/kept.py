"""The fronts of networks' precisions that searches have left, in the cache folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastrun.kernels.native.cache import cache_root

Front = Mapping[str, Any]
"""What `search.Precision.document` gives."""


def front_file(digest: str, machine: str, threads: int) -> Path:
    """Where the front of the optimised float32 network of a digest is kept."""
    return cache_root() / "precision" / f"{digest}-{machine}-{threads}.json"


def kept_front(digest: str, machine: str, threads: int) -> Front | None:
    """The front of the optimised float32 network of a digest; None if none was found."""
    file = front_file(digest, machine, threads)
    found: Front | None = json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
    return found
