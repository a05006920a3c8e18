"""Shows the front of a network's precisions: what was validated, and what was chosen."""

from __future__ import annotations

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
            ms(point["seconds"]),
            ratio(points[0]["seconds"] / point["seconds"]),
            percent(point["lost"], 1),
            f"{point['error']:.1e}",
            f"{point['expected_loss'] ** 0.5:.1e}",
        )
        for i, point in enumerate(points)
    ]
    heads = ("", "layers in\n8 bits>", "ms>", "over\nfirst>", f"lost\n{what}>", "error\nrms>",
             "expected\nerror>")  # fmt: skip
    examples = plural(document["samples"], "example")
    print(f"\n{document['network']}: precisions as whole networks, {examples}")
    grid(screen(), heads, rows)
    print(f"{len(document['expected'])} plans lie on the front of expected times and errors")
