"""Plans as files that somebody or something has changed: at random, or as an editor would."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

LAYOUTS = ("NCHW", "NHWC", "NCHW4c", "NCHW8c", "NCHW16c", "NCHW2c")
NUMBERS = (0, 1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 64, 100, 1000, 10**6, 10**9, 10**18, -1, -8)

Draw = random.Random


def mutant(text: str, draw: Draw) -> str:
    """A plan's text with one to three changes."""
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        text = draw.choice(CHANGES)(text, draw)
    return text


def _characters(text: str, draw: Draw) -> str:
    at, end = draw.randrange(len(text)), draw.choice((0, 1, 1, 1, 5))
    new = draw.choice(
        ("", draw.choice("0123456789"), draw.choice(text), chr(draw.randrange(1, 400)))
    )
    return text[:at] + new + text[at + end :]


def _cut(text: str, draw: Draw) -> str:
    return text[: draw.randrange(len(text))]


def _lines(text: str, draw: Draw) -> str:
    lines = text.splitlines()
    if lines:
        line = lines.pop(draw.randrange(len(lines)))
        for _ in range(draw.choice((0, 1, 1, 2))):
            lines.insert(draw.randint(0, len(lines)), line)
    return "\n".join(lines) + "\n"


def _of_a_task(
    change: Callable[[list[str], list[list[str]], Draw], None],
) -> Callable[[str, Draw], str]:
    """A change of the fields of a task's line; `change` may look at the others'."""

    def changed(text: str, draw: Draw) -> str:
        lines = [line.split("\t") for line in text.splitlines()]
        tasks = [line for line in lines if len(line) == 4]
        if tasks:
            change(draw.choice(tasks), tasks, draw)
        return "\n".join(map("\t".join, lines)) + "\n"

    return changed


def _layout(task: list[str], tasks: list[list[str]], draw: Draw) -> None:
    reads, _, writes = task[1].partition(">")
    sources = reads.split(",")
    if draw.random() < 0.5:
        sources = [draw.choice(LAYOUTS)] * len(sources)
    else:
        sources[draw.randrange(len(sources))] = draw.choice(LAYOUTS)
    task[1] = f"{','.join(sources)}>{draw.choice((writes, *LAYOUTS))}"


def _schedule(task: list[str], tasks: list[list[str]], draw: Draw) -> None:
    """Other layouts in both fields, as somebody would write who knows plans."""
    src, dst = draw.choice(LAYOUTS[:5]), draw.choice(LAYOUTS[:5])
    count = task[1].count(",")
    task[1] = ",".join([src, *[dst] * count]) + f">{dst}"
    task[2] = re.sub(r"layout=[^,)]*", f"layout={src}>{dst}", task[2])


def _number(task: list[str], tasks: list[list[str]], draw: Draw) -> None:
    found = list(re.finditer(r"\d+", task[2]))
    if found:
        at = draw.choice(found)
        new = draw.choice(
            (draw.choice(NUMBERS), max(0, int(at[0]) + draw.randint(-3, 3)), 2 * int(at[0]))
        )
        task[2] = f"{task[2][: at.start()]}{new}{task[2][at.end() :]}"


def _switch(task: list[str], tasks: list[list[str]], draw: Draw) -> None:
    old, new = draw.choice((("=no", "=yes"), ("=yes", "=no")))
    task[2] = task[2].replace(old, new, 1)


def _runs(task: list[str], tasks: list[list[str]], draw: Draw) -> None:
    """What another line runs, with or without its layouts."""
    other = draw.choice(tasks)
    task[2] = other[2]
    if draw.random() < 0.5:
        task[1] = other[1]


def _bands(task: list[str], tasks: list[list[str]], draw: Draw) -> None:
    task[2] = f"{task[2].partition(' by ')[0]} by {draw.choice(NUMBERS)} rows"


CHANGES = (_characters, _cut, _lines) + 3 * tuple(
    map(_of_a_task, (_layout, _schedule, _number, _number, _switch, _runs, _bands))
)
