"""Standings, tables, figures and the page, from made-up records."""

import html
import json
import math
import random
import re
import shlex
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.figure import Figure

from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.registry import parse_schedule
from fastrun.tuner.machine.probe import MachineReport
from fastrun.tuner.networks.targets import Target
from fastrun.tuner.records.environment import toolchain
from fastrun.tuner.records.record import Conditions, Outcome, RecordError
from fastrun.tuner.records.verdicts import speedup_interval
from fastrun.tuner.report import layer_plots, plots
from fastrun.tuner.report import style as look
from fastrun.tuner.report.frames import (
    algorithms_frame,
    best_frame,
    convergence_frame,
    importance_frame,
    layer_labels,
    outcomes_frame,
)
from fastrun.tuner.report.network_times import (
    BENCH,
    BENCHED,
    RACED,
    SUM,
    NetworkTimes,
    benched,
    explanation,
    times_frame,
)
from fastrun.tuner.report.page import machine_slug, write_report
from fastrun.tuner.report.sections import sections
from fastrun.tuner.report.summary import Facts, summary, tiles
from fastrun.tuner.store.database import Database, DatabaseError
from fastrun.tuner.store.frame import frame
from fastrun.tuner.store.staleness import is_current
from fastrun.tuner.store.standing import Standing, network_seconds, standings
from tests.support import synthetic
from tests.support.records import placed, record
from tests.support.synthetic import PEAK, precisions, records

TEXTS = (
    "conv 1x3x32x32 16x7x7 s2 p3 bias relu",
    "conv 1x16x16x16 16x3x3 s1 p1 bias relu",
    "conv 1x16x16x16 16x3x3 s1 p1 bias add relu",
    "conv 1x16x16x16 16x3x3 s1 p1 g16 bias",
    "conv 1x16x16x16 32x1x1 s2 p0 bias",
)
PROBLEMS = tuple((ConvProblem.parse(text), 1 + n) for n, text in enumerate(TEXTS))
NETWORK = Target("a <b>network", PROBLEMS, synthetic.GRAPH)
HERE = Cpu.host().fingerprint
MACHINE = MachineReport(
    machine=HERE,
    model="Made-up CPU (TM) 9000",
    cores=2,
    peak=PEAK,
    peak_all=2 * PEAK,
    dots={"vnni": 4 * PEAK},
    read={"L1": 2e11, "DRAM": 2e10},
    read_streams={"L1": 2e11, "DRAM": 3e10},
    moves={},
    moves_all={},
    noise=0.01,
    time="2026-01-01T00:00:00+00:00",
)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Database:
    stored = Database(tmp_path_factory.mktemp("made-up") / "records.db")
    for r in records([p for p, _ in PROBLEMS]):
        stored.add(r)
    stored.add_network(synthetic.final(HERE))
    return stored


@pytest.fixture(scope="module")
def found(database: Database) -> list[Standing]:
    return standings(database, PROBLEMS, Conditions(HERE))


@pytest.fixture(scope="module")
def page(database: Database, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report")
    (out / BENCHED).write_text(json.dumps(synthetic.bench(HERE, NETWORK.name)))
    return write_report(database, [NETWORK], out, MACHINE, threads=1, regime="hot")


def test_standings_find_the_three_records(database: Database, found: list[Standing]) -> None:
    for s in found:
        assert s.naive
        assert s.naive.algorithm == "naive"
        assert s.heuristic
        assert s.heuristic.heuristic
        assert s.best
        assert not s.best.baseline
        assert s.best.stage == "final"
        of_problem = database.records(problem=s.problem, stage="final")
        assert s.best.seconds_per_call == min(r.seconds_per_call for r in of_problem)
    naive, heuristic, best = network_seconds(found)
    assert naive > heuristic >= best
    assert best == pytest.approx(sum(s.count * s.best.seconds_per_call for s in found if s.best))


def test_a_network_with_a_gap_has_no_sum(found: list[Standing]) -> None:
    gap = replace(found[0], heuristic=None)
    naive, heuristic, best = network_seconds([gap, *found[1:]])
    assert math.isnan(heuristic)
    assert naive > best


@pytest.mark.parametrize(
    ("heuristic", "best", "verdict"),
    [
        ([1.2e-3] * 5, [1.0e-3] * 5, "faster"),
        ([1.02e-3] * 5, [1.0e-3] * 5, "tie"),
        # Faster on average, but by less than the processes scatter.
        ([1.08e-3, 0.9e-3, 1.3e-3] * 2, [1.0e-3, 1.2e-3, 0.85e-3] * 2, "tie"),
        # Two processes are not enough: in another one, memory lies elsewhere.
        ([1.2e-3] * 2, [1.0e-3] * 2, "unsure"),
        ([1.2e-3], [1.0e-3], "unsure"),
    ],
)
def test_verdicts(heuristic: list[float], best: list[float], verdict: str) -> None:
    """Three samples of each process, whose times are given."""
    p = ConvProblem.parse(record().problem)
    slower, faster = (
        record(
            mr=mr, samples=[x for x in times for _ in range(3)], stage="final", run=f"run {mr}",
            **placed(3 * len(times), len(times)),
        )
        for mr, times in ((6, heuristic), (8, best))
    )  # fmt: skip
    assert Standing(p, 1, None, slower, faster, slower).verdict == verdict
    assert Standing(p, 1, None, slower, slower, faster).verdict == "heuristic"
    assert Standing(p, 1, None, None, faster).verdict == "not measured"
    nobody_else = Standing(p, 1, None, slower, slower)
    assert nobody_else.verdict == "not searched"
    assert not nobody_else.raced


def test_samples_of_unknown_processes_have_no_interval() -> None:
    """Older records: fifteen samples of unknown processes."""
    p = ConvProblem.parse(record().problem)
    slow, fast = (record(mr=mr, samples=[t] * 15, stage="final") for mr, t in ((6, 2), (8, 1)))
    found = Standing(p, 1, None, slow, fast, slow)
    assert math.isnan(found.interval[0])
    assert found.verdict == "unsure"
    assert not found.raced


def test_the_runner_up_is_the_next_that_may_be_used(tmp_path: Path) -> None:
    fields = {"stage": "final", "machine": HERE, "toolchain": toolchain(), "run": "one"}
    with Database(tmp_path / "records.db") as database:
        for mr, seconds in ((8, 1.0), (6, 1.1), (4, 1.3)):
            times = [seconds * (1 + process / 100) for process in range(5) for _ in range(3)]
            database.add(record(mr=mr, samples=times, **fields, **placed(15, 5)))
        p = ConvProblem.parse(record().problem)
        [found] = standings(database, [(p, 1)], Conditions(HERE))
    assert found.runner_up
    assert found.runner_up.parameters["mr"] == 6
    assert found.over_runner_up == pytest.approx((1.1, 1.1))


def test_pairs_cancel_what_disturbs_both() -> None:
    """Both are twice as slow in one process; their ratio is always 1.1."""
    base = [1e-3 * (2.0 if n // 5 == 1 else 1.0) for n in range(15)]
    fields = {"stage": "final", "run": "one", **placed(15, 3)}
    fast = record(mr=8, samples=base, **fields)
    slow = record(mr=6, samples=[1.1 * x for x in base], **fields)
    low, high = speedup_interval(slow, fast)
    assert low == pytest.approx(1.1)
    assert high == pytest.approx(1.1)
    low, high = speedup_interval(replace(slow, run="another"), fast)
    assert high - low > 0.1


def test_what_the_generator_no_longer_makes_is_not_best(tmp_path: Path) -> None:
    p, _ = PROBLEMS[1]
    made = [r for r in records([p], trials=0) if r.stage == "final"]
    template, schedule = parse_schedule(made[0].schedule)
    true_hash = template.program(p, schedule, Cpu.host()).ir_hash
    llvm = made[0].toolchain.partition(",")[0]
    older = replace(made[0], toolchain=f"{llvm}, kernels 0ld")
    assert not is_current(older)
    assert is_current(replace(older, ir_hash=true_hash))
    assert not is_current(replace(older, ir_hash=true_hash, toolchain="llvm 1.2.3, kernels 0ld"))
    assert not is_current(replace(older, schedule="direct(field_of_old=1)"))
    assert is_current(replace(older, machine="elsewhere"))
    with Database(tmp_path / "old.db") as database:
        database.add(older)
        assert standings(database, [(p, 1)], Conditions(HERE))[0].best is None
        database.add(replace(older, ir_hash=true_hash, time="2027-01-01T00:00:00+00:00"))
        assert standings(database, [(p, 1)], Conditions(HERE))[0].best


def test_frames(database: Database, found: list[Standing]) -> None:
    best = best_frame(found, PEAK)
    assert list(best["problem"]) == list(TEXTS)
    assert (best["low"] <= best["speedup_heuristic"]).all()
    assert (best["speedup_heuristic"] <= best["high"]).all()
    assert best["share"].to_list() == pytest.approx((best["gflops"] / PEAK * 1e9).to_list())
    stored = database.records()
    curves = convergence_frame(stored)
    for _, curve in curves.groupby("problem"):
        assert curve["best"].dropna().is_monotonic_decreasing
        assert list(curve["trial"]) == list(range(1, len(curve) + 1))
    failed = outcomes_frame(stored)
    assert failed["count"].sum() == sum(r.outcome != Outcome.CORRECT for r in stored)
    assert not failed["reason"].str.contains(r"\d").any()
    assert len(frame(stored)) == len(stored)


def test_the_best_of_each_algorithm() -> None:
    fast, slow = record(mr=8, samples=[1e-3]), record(mr=6, samples=[2e-3])
    naive = record(schedule="naive(layout=NCHW)", samples=[1.0], baseline=True)
    table = algorithms_frame([slow, fast, naive]).set_index("algorithm")
    assert table.loc["direct", "best"] == 1e-3
    assert table.loc["direct", "schedule"] == fast.schedule
    assert table.loc["naive", "baseline"]


def test_importance_finds_what_matters() -> None:
    """Times depend on `mr` alone; `odd` is noise, `one` is always the same."""
    draw = random.Random(0)
    trials = [
        record(
            schedule=f"direct(layout=NHWC, mr={mr}, odd={draw.randrange(4)}, one=1)",
            samples=[1e-3 * mr * draw.uniform(0.99, 1.01)],
        )
        for mr in (1, 2, 3, 4) * 15
    ]
    table = importance_frame(trials).set_index("parameter")["importance"]
    assert table.idxmax() == "mr"
    assert table["mr"] > 0.98
    assert table["odd"] < 0.1
    assert table["one"] == table["layout"] == 0
    assert len(importance_frame(trials[:19])) == 0
    plots.importance(importance_frame(trials))


def test_labels_differ() -> None:
    twins = ["conv 1x8x9x7 8x3x3 s1 p1", "conv 1x8x9x7 8x3x3 s1 p0", "conv 1x8x9x7 8x3x3 s2 g4"]
    labels = layer_labels([ConvProblem.parse(t) for t in (*TEXTS, *twins)])
    assert len(set(labels)) == len(labels)
    assert labels[0] == "7x7 3→16 @32 /2"
    assert labels[3] == "dw 3x3 16 @16"
    assert labels[-3:] == ["3x3 8→8 @9x7", "3x3 8→8 @9x7 (2)", "3x3 8→8 @9x7 g4 /2"]


def figures(found: list[Standing], database: Database) -> list[Figure]:
    best, stored = best_frame(found, PEAK), database.records()
    return [
        layer_plots.over_naive(best),
        layer_plots.over_heuristic(best),
        layer_plots.share_of_peak(best, PEAK),
        layer_plots.time_per_layer(best),
        plots.algorithms(algorithms_frame(stored), best),
        layer_plots.roofline(best, PEAK, MACHINE.read),
    ]


def test_times_over_the_winner_may_be_less_than_one(found: list[Standing]) -> None:
    best = best_frame(found[:1], PEAK)
    [problem], [seconds] = best["problem"], best["best"]
    columns = ["problem", "algorithm", "best", "schedule", "baseline"]
    rows = [(problem, "direct", seconds, "", False), (problem, "planar", 0.9 * seconds, "", False)]
    [axes] = plots.algorithms(pd.DataFrame(rows, columns=columns), best).axes
    drawn = sorted(float(x) for line in axes.lines for x in line.get_xdata())
    assert drawn == pytest.approx([0.9, 1.0])
    assert axes.get_xlim()[0] < 0.9


def test_figures_bear_what_is_missing(database: Database, found: list[Standing]) -> None:
    """One layer without a heuristic, one without a naive loop, one without measurements."""
    gaps = [
        replace(found[0], heuristic=None),
        replace(found[1], naive=None),
        Standing(found[2].problem, 1, None, None, None),
        *found[3:],
    ]
    for figure in figures(gaps, database):
        look.svg(figure)
    look.svg(plots.algorithms(algorithms_frame([]), best_frame(found)))
    look.svg(plots.convergence(convergence_frame([])))
    look.svg(plots.outcomes(outcomes_frame([])))


def test_share_of_peak_ends_at_the_peak(found: list[Standing]) -> None:
    """The axis extends beyond the peak if Winograd's effective rate does."""
    below = best_frame(found, 10 * PEAK)
    assert 100 <= layer_plots.share_of_peak(below, 10 * PEAK).axes[0].get_xlim()[1] < 120
    above = best_frame(found, PEAK / 10)
    assert (
        layer_plots.share_of_peak(above, PEAK / 10).axes[0].get_xlim()[1]
        > 100 * above["share"].max()
    )


def test_every_figure_names_its_units(database: Database, found: list[Standing]) -> None:
    for figure in figures(found, database):
        assert figure.get_suptitle()
        assert figure.axes[0].get_xlabel()


def test_figures_repeat_to_the_byte(found: list[Standing]) -> None:
    best = best_frame(found, PEAK)
    assert look.svg(layer_plots.over_naive(best)) == look.svg(layer_plots.over_naive(best))


@pytest.mark.slow
def test_the_page_stands_alone(page: Path) -> None:
    text = page.read_text()
    assert not re.search(r"""(?:src|href)=["'](?!#|data:)""", text.replace("xlink:href", "href"))
    assert "<script" not in text
    assert "<b>network" not in text
    assert "prefers-color-scheme: dark" in text
    assert text.count("<svg") >= 8
    assert look.INK in text.partition("</style>")[0]
    assert look.INK not in text.partition("</style>")[2]
    assert not re.search(r"\bnan\b", re.sub(r"<svg.*?</svg>", "", text, flags=re.DOTALL))


def test_the_page_says_what_matters_first(page: Path, found: list[Standing]) -> None:
    text = page.read_text().partition("<main>")[0]
    faster = sum(s.verdict == "faster" for s in found)
    assert f"{faster} of {len(found)}" in text
    assert f"{sum(count for _, count in PROBLEMS)} convolutions of a &lt;b&gt;network" in text
    assert text.index("How much faster") < text.index("What did not get faster")
    slow = text.partition("What did not get faster")[2].partition("</p>")[0]
    for label, s in zip(layer_labels([s.problem for s in found]), found, strict=True):
        named = html.escape(label.replace(" ", "\xa0")) in slow
        assert named == (s.verdict != "faster")


def test_the_summary_of_many_networks_is_short(database: Database, found: list[Standing]) -> None:
    """A table has the sums of all networks; only some of many layers are named."""
    none = [replace(s, best=None) for s in found]
    targets = [NETWORK, replace(NETWORK, name="second"), replace(NETWORK, name="third")]
    records = database.records()

    def said(standings: list[Standing]) -> dict[str, str]:
        facts = Facts(MACHINE, [], targets, Conditions(HERE), standings, records, [], {}, [])
        return dict(summary(facts, [f"layer {n}" for n in range(len(standings))]))

    many = said([*none, *none, *found])
    assert many["How much faster"].count("naive loop") == 1
    assert "second" not in many["How much faster"]
    assert "Not measured: 10 layers" in many["What did not get faster"]
    assert "and 7 more." in many["What did not get faster"]
    assert "5 of 5 problems of second have no measurement" in said(none)["How much faster"]


def test_every_row_has_a_command_that_parses(page: Path, found: list[Standing]) -> None:
    from fastrun.main import parsers

    text = html.unescape(page.read_text())
    commands = re.findall(r"fastrun show '[^<]*--measure", text)
    assert len(commands) == len(found)
    for command, s in zip(commands, found, strict=True):
        arguments = parsers()[0].parse_args(shlex.split(command)[1:])
        assert arguments.target == str(s.problem)
        assert s.best
        assert arguments.schedule == s.best.schedule
        assert arguments.measure


def test_files_beside_the_page(page: Path, found: list[Standing]) -> None:
    layers = pd.read_csv(page.with_name("layers.csv"))
    assert list(layers["best"]) == pytest.approx([s.best.seconds_per_call for s in found if s.best])
    markdown = page.with_name("report.md").read_text()
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", markdown)
    assert len(pictures) >= 8
    for picture in pictures:
        assert page.with_name(picture).read_bytes().startswith(b"\x89PNG")
    for table in re.findall(r"\]\((\w+\.csv)\)", markdown):
        assert len(pd.read_csv(page.with_name(table))) > 0
    heads = [line for line in markdown.splitlines() if line.startswith("| layer")]
    assert heads
    assert not re.search(r"\n\n\n", markdown)


def test_a_network_stands_beside_plans_and_engines(page: Path, found: list[Standing]) -> None:
    text = html.unescape(page.read_text())
    section = text.partition("a <b>network as a whole")[2].partition("Layer by layer")[0]
    assert section.count("<svg") == 1
    table = pd.read_csv(page.with_name("networks.csv")).set_index("who")
    assert list(table["source"]) == [SUM] * 3 + [RACED] * 4 + [BENCH] * 2
    naive, _, best = network_seconds(found)
    assert table.loc["layers: naive loops", "seconds"] == pytest.approx(naive)
    assert table.loc["layers: tuned", "seconds"] == pytest.approx(best)
    assert list(table.index[table["kept"]]) == ["plan: layer times"]
    kept = table[table["kept"]].iloc[0]
    assert kept["low"] - 1e-9 <= kept["over_heuristic"] <= kept["high"] + 1e-9
    assert table.loc["peer", "seconds"] == 7e-3
    assert "broken" not in table.index
    for words in ("sum of layers", "timed in place, 36 samples", "fastrun bench, 10 samples"):
        assert f">{words}</td>" in section


def test_a_network_without_a_final_says_so(found: list[Standing]) -> None:
    network = NetworkTimes("folder/net.onnx", found, None, [], None)
    assert list(times_frame([network])["source"]) == [SUM] * 3
    assert network.title == "net"
    assert "No plan was timed as a whole" in explanation(network)


def test_several_networks_have_a_table(found: list[Standing]) -> None:
    race = [
        {"engine": "ours", "seconds": 2e-3, "samples": [2e-3]},
        {"engine": "slow", "seconds": 4e-3, "samples": [4e-3]},
        {"engine": "peer", "seconds": 3e-3, "samples": [3e-3]},
    ]
    networks = [NetworkTimes(name, found, None, race[:n], None) for name, n in (("a", 3), ("b", 1))]
    assert list(times_frame(networks[:1])["over_peer"].dropna()) == [1.5, 0.75, 1.0]
    facts = Facts(MACHINE, [], [NETWORK], Conditions(HERE), found, [], [], {}, networks)
    assert ("1.50x", "the speed of peer, the best other engine, on a") in [*tiles(facts)]
    section = next(iter(sections(facts, best_frame(found, PEAK))))
    assert section.table
    assert [row[0] for row in section.table.rows] == ["a", "b"]
    assert [row[-1] for row in section.table.rows] == ["1.50x peer", "-"]
    assert "peer, the best of them, 3.00 ms: 1.50x" in explanation(networks[0])


def test_precisions_of_a_network_have_a_section(found: list[Standing]) -> None:
    for front, names in ((None, ["network-1"]), (precisions(), ["network-1", "precision-1"])):
        networks = [NetworkTimes("net.onnx", found, None, [], front)]
        facts = Facts(MACHINE, [], [NETWORK], Conditions(HERE), found, [], [], {}, networks)
        parts = list(islice(sections(facts, best_frame(found, PEAK)), len(names) + 1))
        assert [part.name for part in parts] == [*names, "layers"]
    section = parts[1]
    assert "right in float32 and wrong here" in section.text
    assert section.table
    assert section.table.rows[2] == ("17 of 21 (chosen)", "2.00", "2.00x", "0.4 %", "3.5e-02")


def test_engines_of_another_machine_are_left_out(tmp_path: Path) -> None:
    assert benched(tmp_path, HERE, 1, "net.onnx") == []
    file = tmp_path / BENCHED
    file.write_text(json.dumps(synthetic.bench(HERE, "net")))
    assert [r["engine"] for r in benched(tmp_path, HERE, 2, "a/net.onnx")] == ["ours", "peer"]
    assert benched(tmp_path, "elsewhere", 1, "net") == []
    for damaged in ("{", "[]", '{"results": []}'):
        file.write_text(damaged)
        with pytest.raises(RecordError, match="fastrun bench --json"):
            benched(tmp_path, HERE, 1, "net")


def test_nothing_measured_is_a_mistake(database: Database, tmp_path: Path) -> None:
    for threads, regime in ((2, "hot"), (1, "cold-weights")):
        with pytest.raises(DatabaseError, match="`fastrun tune` first"):
            write_report(
                database, [NETWORK], tmp_path / "none", MACHINE, threads=threads, regime=regime
            )
    assert not (tmp_path / "none").exists()


def test_folders_are_named_by_the_machine() -> None:
    assert machine_slug(MACHINE) == f"made-up-cpu-9000-{HERE[:8]}"


def test_what_was_not_searched_is_counted_apart(tmp_path: Path) -> None:
    """One layer with a measurement of the heuristic's schedule only."""
    problem, _ = PROBLEMS[1]
    target = Target("one layer", ((problem, 1),))
    with Database(tmp_path / "records.db") as database:
        for r in records([problem], trials=0):
            if r.heuristic and r.stage == "screen":
                database.add(r)
        written = write_report(database, [target], tmp_path, MACHINE, threads=1, regime="hot")
    text = written.with_name("report.md").read_text()
    assert "Tuned" in text
    assert "0 distinct convolutions, 1 not" in text
    assert "not searched" in text
    assert "1 of 1 winner did not race" in text
    assert "raced the heuristic" not in text
    assert not re.search(r"\bnan\b", text)
    assert list(pd.read_csv(written.with_name("layers.csv"))["verdict"]) == ["not searched"]
