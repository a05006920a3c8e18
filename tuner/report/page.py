"""The report: a page as HTML and as Markdown, figures, tables. Only this file imports jinja2."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from jinja2 import Environment as Templates
from jinja2 import PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup, escape

from fastrun.kernels.core.attention import parse_problem
from fastrun.tuner.machine.probe import MachineReport
from fastrun.tuner.networks.targets import Target, merged
from fastrun.tuner.precision.kept import kept_front
from fastrun.tuner.records.network_record import NetworkRecord
from fastrun.tuner.records.record import Conditions, Record
from fastrun.tuner.records.units import plural
from fastrun.tuner.report import style as look
from fastrun.tuner.report.frames import (
    algorithms_frame,
    best_frame,
    convergence_frame,
    importance_frame,
    outcomes_frame,
    pareto_frame,
)
from fastrun.tuner.report.network_times import NetworkTimes, benched, times_frame
from fastrun.tuner.report.sections import sections
from fastrun.tuner.report.summary import Facts, summary, tiles, where_and_when
from fastrun.tuner.store.database import Database, DatabaseError
from fastrun.tuner.store.staleness import first_current
from fastrun.tuner.store.standing import front, of_network, standings


def write_report(
    database: Database,
    targets: Sequence[Target],
    out: Path | None,
    machine: MachineReport,
    *,
    threads: int,
    regime: str,
) -> Path:
    """Write report.html, report.md, figures and tables into a folder; return the page's path.

    Without targets, the report is about all problems that were measured on `machine` with `threads`
    and `regime`. The default folder is that of the machine in `reports/`. If it holds a file
    `networks.json` of `fastrun bench --json` on this machine, the report includes other engines.

    Raises:
        DatabaseError: there are no measurements under these conditions.
        RecordError: the file `networks.json` is damaged.
        OSError: the folder cannot be written.
    """
    folder = out or Path("reports") / machine_slug(machine)
    conditions = Conditions(machine.machine, threads, regime)
    facts = gather(database, targets, machine, conditions, folder)
    folder.mkdir(parents=True, exist_ok=True)
    best = best_frame(facts.found, facts.peak)
    parts = list(sections(facts, best))
    for section in parts:
        if section.figure:
            look.save_png(section.figure, folder / f"{section.name}.png")
    tables = {
        "networks": times_frame(facts.networks),
        "layers": best,
        "algorithms": algorithms_frame(facts.decisive),
        "convergence": convergence_frame(facts.records),
        "pareto": pareto_frame(facts.fronts),
        "importance": importance_frame(facts.records),
        "failures": outcomes_frame(facts.records),
    }
    tables = {name: table for name, table in tables.items() if len(table)}
    for name, table in tables.items():
        table.to_csv(folder / f"{name}.csv", index=False)
    content = {
        "title": ", ".join(t.title_of_file for t in facts.targets) or "all problems measured",
        "subtitle": where_and_when(facts),
        "tiles": list(tiles(facts)),
        "summary": list(summary(facts, list(best["layer"]))),
        "sections": parts,
        "csv": sorted(tables),
        "ink": look.INK,
        "paper": look.PAPER,
        "faint": look.FAINT,
    }
    templates = Templates(
        loader=PackageLoader("fastrun.tuner.report"),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {"themed_svg": _themed_svg, "prose": _prose}
    for name in ("report.html", "report.md"):
        text = templates.get_template(name).render(content)
        (folder / name).write_text(text, encoding="utf-8")
    return folder / "report.html"


def machine_slug(machine: MachineReport) -> str:
    """The name of a machine's folder: its model, and the beginning of its fingerprint."""
    name = re.sub(r"\((r|tm)\)", "", machine.model.lower())
    model = re.sub(r"[^a-z0-9]+", "-", name).strip("-")
    return f"{model[:40].strip('-')}-{machine.machine[:8]}"


def gather(
    database: Database,
    targets: Sequence[Target],
    machine: MachineReport,
    conditions: Conditions,
    folder: Path | None = None,
) -> Facts:
    """The facts that the database has about targets, and other engines' times from `folder`.

    Raises:
        As `write_report`.
    """
    problems = merged(targets)
    if not targets:
        problems = [(parse_problem(text), 1) for text in database.best_all(conditions)]
    names = {str(p) for p, _ in problems}
    stored = database.records(
        machine=conditions.machine, threads=conditions.threads, regime=conditions.regime
    )
    records = [r for r in stored if r.problem in names]
    found = standings(database, problems, conditions)
    if not any(s.best for s in found):
        asked = ", ".join(target.name for target in targets) or "any problem"
        raise DatabaseError(
            f"database {database.name} holds no valid measurement of {asked} on this machine with "
            f"{plural(conditions.threads, 'thread')}, {conditions.regime}: `fastrun tune` first"
        )
    rankings = {p: database.ranking(p, conditions, include_baselines=True) for p, _ in problems}
    decisive = [r for ranking in rankings.values() for r in _best_of_each(ranking)]
    runs = {r.run for r in records}
    environments = [e for run in sorted(runs) for e in database.environments(run)]
    return Facts(
        machine=machine,
        environments=[e for e in environments if e.machine == machine.machine],
        targets=targets,
        conditions=conditions,
        found=found,
        records=records,
        decisive=decisive,
        fronts={p: front(ranking) for p, ranking in rankings.items()},
        networks=[
            NetworkTimes(
                target.name,
                of_network(found, target.problems),
                _newest_final(database, target, conditions),
                benched(folder, machine.machine, conditions.threads, target.name) if folder else [],
                kept_front(target.graph, machine.machine, conditions.threads),
            )
            for target in targets
            if target.is_network
        ],
    )


def _newest_final(
    database: Database, target: Target, conditions: Conditions
) -> NetworkRecord | None:
    finals = database.networks(
        graph=target.graph, machine=conditions.machine, threads=conditions.threads
    )
    return finals[-1] if finals else None


def _best_of_each(ranking: Sequence[Record]) -> Iterator[Record]:
    """The best current record of every algorithm, by the order of the ranking."""
    for algorithm in sorted({r.algorithm for r in ranking}):
        best = first_current(r for r in ranking if r.algorithm == algorithm)
        if best:
            yield best


def _prose(text: str) -> Markup:
    """Sentences as HTML: code instead of backticks, and no line break before %."""
    escaped = str(escape(text)).replace(" %", "\u00a0%")
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", escaped))


def _themed_svg(figure: look.Figure) -> Markup:
    """A figure without its title and with the page's colours, which are light or dark."""
    figure.suptitle("")
    text = look.svg(figure)
    for colour, name in ((look.INK, "ink"), (look.PAPER, "paper"), (look.FAINT, "faint")):
        text = text.replace(colour, f"var(--{name})")
    # Matplotlib's width and height would override those of the page.
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    return Markup(re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1))
