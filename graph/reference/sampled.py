"""GridSample and NonMaxSuppression in vectors; ONNX's own go through elements one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx.reference.op_run import OpRun

from fastrun.graph.core.model import Array
from fastrun.graph.core.ops import GridSample as Points
from fastrun.graph.reference.points import grid_sample


class GridSample(OpRun):
    """Values of images (n, c, *space) at points of a grid (n, *out, axes) from -1 to 1.

    As PyTorch: with cubic interpolation each pixel outside is padded, not the point.
    """

    op_domain = ""

    def _run(self, x: Array, grid: Array, **given: Any) -> tuple[Array]:
        mode = _text(given.get("mode") or getattr(self, "mode", None) or "linear")
        padding = _text(given.get("padding_mode") or getattr(self, "padding_mode", None) or "zeros")
        corners = bool(getattr(self, "align_corners", 0) or given.get("align_corners"))
        mode = {"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode)
        return (grid_sample(Points(mode, padding, corners), x, grid).astype(x.dtype),)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


class NonMaxSuppression(OpRun):
    """For every image and class the best boxes that overlap no better one too much."""

    op_domain = ""

    def _run(
        self,
        boxes: Array,
        scores: Array,
        most: Any = None,
        overlap: Any = None,
        least: Any = None,
        **_: Any,
    ) -> tuple[Array]:
        limit = 0 if most is None else int(np.reshape(most, -1)[0])
        threshold = 0.0 if overlap is None else float(np.reshape(overlap, -1)[0])
        low = -np.inf if least is None else float(np.reshape(least, -1)[0])
        centred = bool(getattr(self, "center_point_box", 0))
        found = [
            (image, kind, box)
            for image, of_image in enumerate(scores)
            for corners in [_corners(boxes[image], centred)]
            for kind, row in enumerate(of_image)
            for box in _best(corners, row, limit, threshold, low)
        ]
        return (np.array(found, np.int64).reshape(-1, 3),)


def _best(corners: Array, scores: Array, limit: int, threshold: float, low: float) -> list[int]:
    (candidates,) = np.nonzero(scores > low)
    left = candidates[np.argsort(-scores[candidates], kind="stable")]
    chosen: list[int] = []
    while len(left) and len(chosen) < limit:
        first, left = left[0], left[1:]
        chosen.append(int(first))
        left = left[_overlap(corners[first], corners[left]) <= threshold]
    return chosen


def _corners(boxes: Array, centred: bool) -> Array:
    """Boxes as the lower corner, then the upper one."""
    if centred:
        middle, size = boxes[:, :2], boxes[:, 2:]
        return np.concatenate([middle - size / 2, middle + size / 2], axis=1)
    pairs = np.stack([boxes[:, :2], boxes[:, 2:]])
    return np.concatenate([pairs.min(axis=0), pairs.max(axis=0)], axis=1)


def _overlap(one: Array, others: Array) -> Array:
    """Intersection over union; 0 for boxes without an area."""
    sides = np.minimum(one[2:], others[:, 2:]) - np.maximum(one[:2], others[:, :2])
    common = np.prod(np.maximum(sides, 0), axis=1)
    areas = np.prod(others[:, 2:] - others[:, :2], axis=1)
    area = np.prod(one[2:] - one[:2])
    union = area + areas - common
    real = (area > 0) & (areas > 0) & (union > 0)
    share: Array = np.where(real, common / np.where(real, union, 1), 0)
    return share
