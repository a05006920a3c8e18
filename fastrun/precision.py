"""Shows the front of a network's precisions: what was validated, and what was chosen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fastrun.tuner.records.units import ms, percent, plural, ratio


def print_front(document: Mapping[str, Any]) -> None:
    """Print the front that a search for the precision of a network has kept."""
    from fastrun.tuner.terminal.display import grid, screen

    points = document["validated"]
    what = "accuracy" if document["labelled"] else "agreement"
    rows = [
        (
            "chosen" if i == document["chosen"] else "",
            f"{point['layers']} of {point['of']}",
            str(point.get("halves") or ""),
            ms(point["seconds"]),
            ratio(points[0]["seconds"] / point["seconds"]),
            percent(point["lost"], 1),
            f"{point['error']:.1e}",
            f"{point['expected_loss'] ** 0.5:.1e}",
        )
        for i, point in enumerate(points)
    ]
    heads = ("", "layers in\n8 bits>", "in\n16>", "ms>", "over\nfirst>", f"lost\n{what}>",
             "error\nrms>", "expected\nerror>")  # fmt: skip
    examples = plural(document["samples"], "example")
    print(f"\n{document['network']}: precisions as whole networks, {examples}")
    grid(screen(), heads, rows)
    plans = plural(len(document["expected"]), "plan")
    print(f"{plans} on the front of expected times and errors")


def too_few(document: Mapping[str, Any], limit: float) -> str:
    """A line if a limit of the loss allows no example to change and float32 was chosen; else ""."""
    count, lost = document["samples"], [point["lost"] for point in document["validated"]]
    one = 1 / count
    if document["chosen"] or limit >= one or any(0 < x < 0.99 * one for x in lost):
        return ""
    enough = 2 * math.ceil(1 / limit) if limit else 0
    more = f"give {enough} or more, of which half calibrate" if enough else "allow some loss"
    return f"within {percent(limit, 1)} none of {plural(count, 'example')} may change: {more}"
