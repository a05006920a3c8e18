"""Tables on the terminal. This file, `board` and `phases` are the only ones that import rich.

On a terminal a run is shown as a board that is redrawn; elsewhere each event is a plain line.
Colours follow the terminal and NO_COLOR. They repeat what the words say.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from fastrun.tuner.networks.targets import Target
from fastrun.tuner.records.network_record import HEURISTIC, NetworkRecord
from fastrun.tuner.records.units import UNKNOWN, interval, ms, percent, plural, ratio
from fastrun.tuner.store.standing import Standing, network_seconds, of_network, seconds

HEARTBEAT = 10.0
"""Seconds between two plain lines that show that the run is alive."""

_PLAIN_WIDTH, _UNBOUNDED = 200, 10_000
_MARK = "\N{INVISIBLE SEPARATOR}"


def screen(progress: bool = False) -> Console:
    """Standard output, or standard error for what shows `progress`.

    If it is no terminal, lines are long, so that no table is broken.
    """
    console = Console(highlight=False, stderr=progress)
    if console.is_terminal:
        return console
    return Console(highlight=False, stderr=progress, width=_PLAIN_WIDTH)


def grid(
    console: Console, heads: Sequence[str], rows: Sequence[Sequence[str]], below: str = ""
) -> None:
    """Print a table. A head that ends in `>` marks a column of numbers, aligned to the right.

    Where the table is wider than the terminal, the column `below` has no place in it: what it says
    follows each row in a line of its own, unbroken, so that it can be copied. A file gets each row
    in one line.
    """
    table = _table(heads, rows)
    unbounded = console.options.update_width(_UNBOUNDED)
    needed = console.measure(table, options=unbounded).maximum
    if not below or needed <= console.width:
        console.print(table)
        return
    if not console.is_terminal:
        Console(file=console.file, width=needed, highlight=False).print(table)
        return
    column = heads.index(below)
    kept = [i for i in range(len(heads)) if i != column]
    # A row with a mark stands where the line goes.
    marked = [x for row in rows for x in ([row[i] for i in kept], [_MARK, *[""] * (len(kept) - 1)])]
    with console.capture() as captured:
        console.print(_table([heads[i] for i in kept], marked))
    said = iter([row[column] for row in rows])
    for line in captured.get().splitlines():
        if line.strip() != _MARK:
            console.print(Text.from_ansi(line), soft_wrap=True)
        elif text := next(said):
            console.print(f"  {escape(text)}", soft_wrap=True)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = new_table()
    for head in heads:
        add_column(table, head)
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def standings_table(console: Console, found: Sequence[Standing], peak: float) -> None:
    """Print the standings; shares are of `peak`, the measured FLOP/s."""
    columns: dict[str, Callable[[Standing], str]] = {
        "problem": lambda s: str(s.problem),
        "n>": lambda s: str(s.count),
        "naive\nms>": lambda s: ms(seconds(s.naive)),
        "heur.\nms>": lambda s: ms(seconds(s.heuristic)),
        "best\nms>": lambda s: ms(seconds(s.best)),
        "over\nnaive>": lambda s: ratio(s.over_naive),
        "over\nheur.>": lambda s: ratio(s.over_heuristic),
        "GFLOP\n/s>": lambda s: f"{s.gflops:.1f}" if s.best else UNKNOWN,
        "of\npeak>": lambda s: percent(s.gflops * 1e9 / peak),
        "winner": lambda s: s.best.algorithm if s.best else UNKNOWN,
        "verdict": lambda s: s.verdict,
    }
    # A narrow terminal lacks columns that follow from others or are in the report.
    dropped: tuple[str, ...] = ("heur.\nms>", "GFLOP\n/s>") if console.width < 120 else ()
    dropped += ("naive\nms>", "of\npeak>") if console.width < 100 else ()
    dropped += ("n>", "over\nnaive>") if console.width < 80 else ()
    dropped += ("winner",) if console.width < 70 else ()
    shown = {head: column for head, column in columns.items() if head not in dropped}
    grid(console, list(shown), [[column(s) for column in shown.values()] for s in found])
    if "of\npeak>" in shown and any(s.gflops * 1e9 > peak for s in found if s.best):
        console.print(
            "More than 100 % of peak: GFLOP/s count the operations of the direct method, and the "
            "peak is that of float32 vectors. Winograd multiplies less; products of bytes or bf16, "
            "and those of tile registers (AMX), are faster."
        )


def network_sums(console: Console, target: Target, found: Sequence[Standing]) -> None:
    """Print the time of all convolutions of a network, one after the other."""
    own = of_network(found, target.problems)
    naive, heuristic, best = network_seconds(own)
    count = plural(sum(s.count for s in own), "convolution")
    if math.isnan(best):
        missing = sum(s.best is None for s in own)
        left = f"{missing} of {plural(len(own), 'problem')} are not measured"
        console.print(f"[bold]{escape(target.title)}[/], all {count}: no sum, as {left}")
        return
    times = [f"heuristic {ms(heuristic)} ms", f"[bold green]best {ms(best)} ms[/]"]
    gains = [f"{ratio(heuristic / best)} over the heuristic"]
    if not math.isnan(naive):
        times.insert(0, f"naive {ms(naive)} ms")
        gains.insert(0, f"{ratio(naive / best)} over naive")
    console.print(
        f"[bold]{escape(target.title)}[/], all {count}: {', '.join(times)}: {', '.join(gains)}"
    )


def final_table(console: Console, record: NetworkRecord, naive: float) -> None:
    """Print the final of a network; `naive` are the seconds of its layers' naive loops."""
    rows = [] if math.isnan(naive) else [("naive loops, sum of layers", ms(naive), "", "")]
    for name in record.samples:
        over = ratio(record.seconds(HEURISTIC) / record.seconds(name))
        rows.append((name, ms(record.seconds(name)), over, interval(*record.interval(name), 3)))
    console.print()
    heads = (f"{record.network} as a whole", "ms>", "over heur.>", "95 % interval>")
    grid(console, heads, rows)
    console.print(f"kept: [bold]{escape(record.kept)}[/], {record.verdict}")


def new_table() -> Table:
    """An empty table in the style of all tables."""
    return Table(
        box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold"
    )


def add_column(table: Table, head: str) -> None:
    """Add a column. A head that ends in `>` is of numbers, aligned to the right."""
    number = head.endswith(">")
    table.add_column(
        head.removesuffix(">"),
        justify="right" if number else "left",
        no_wrap=number,
        overflow="fold",
        vertical="top",
    )
