"""Plans as files, offsets in the arena, and loading networks by name with little imported."""

from __future__ import annotations

import random
import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from fastrun.graph.build.memory import Lifetime, allocate
from fastrun.graph.core.errors import GraphError, PlanError
from fastrun.graph.core.problems import conv_problem, convolutions
from fastrun.graph.networks import load_network
from fastrun.graph.passes.pipeline import optimise
from fastrun.graph.plan.choices import Choice, crossed, heuristic_choices
from fastrun.graph.plan.form import Costs, Form, layouts_text
from fastrun.graph.plan.plan import Plan
from fastrun.graph.planner import follow_plan, make_plan
from fastrun.graph.reference import interpreter as reference
from fastrun.graph.runtime.executable import Executable
from fastrun.kernels.conv import direct
from fastrun.kernels.core.cpu import CACHE_LINE, Cpu
from fastrun.kernels.core.layout import NCHW, NHWC, Layout, Placement
from fastrun.kernels.core.problem import ConvProblem
from fastrun.tuner.networks.load import load
from fastrun.tuner.records.environment import toolchain
from fastrun.tuner.store.database import Database
from tests.graph.test_networks_run import check, conv, only, residual, shaken, weights
from tests.support.execution import relative_error
from tests.support.graph_models import model, node, normal
from tests.support.lanes import EVERY_CPU, without_tiles
from tests.support.records import record

NCHW8, NCHW16 = Layout("NCHW8c"), Layout("NCHW16c")
CPU = Cpu.host()
ROOT = Path(__file__).parents[2]


def test_buffers_that_live_together_lie_apart() -> None:
    draw = random.Random(0)
    for _ in range(50):
        lifetimes = []
        for _ in range(draw.randint(1, 20)):
            first = draw.randint(0, 10)
            lifetimes.append(Lifetime(draw.randint(0, 999), first, first + draw.randint(0, 5)))
        offsets, size = allocate(lifetimes)
        for i, a in enumerate(lifetimes):
            assert offsets[i] % CACHE_LINE == 0
            assert offsets[i] + a.size <= size
            for j, b in enumerate(lifetimes[:i]):
                if a.first <= b.last and b.first <= a.last:
                    apart = offsets[i] + a.size <= offsets[j] or offsets[j] + b.size <= offsets[i]
                    assert apart or 0 in (a.size, b.size)


def test_kept_halos_share_memory_with_their_like_alone() -> None:
    """No other buffer lies there at any time, and two of their like only one after the other."""
    draw = random.Random(0)
    places = [Placement(NHWC, 1, 4, 2 + i, 2, (1, 1, 1, 1)) for i in range(2)]
    for _ in range(50):
        lifetimes = []
        for _ in range(draw.randint(1, 20)):
            kept, first = draw.choice([None, *places]), draw.randint(0, 10)
            size = 4 * kept.size if kept else draw.randint(1, 999)
            lifetimes.append(Lifetime(size, first, first + draw.randint(0, 5), kept))
        offsets, size = allocate(lifetimes)
        for i, a in enumerate(lifetimes):
            assert offsets[i] + a.size <= size
            for j, b in enumerate(lifetimes[:i]):
                together = a.first <= b.last and b.first <= a.last
                if offsets[i] < offsets[j] + b.size and offsets[j] < offsets[i] + a.size:
                    assert not together
                    assert a.kept == b.kept
                    assert offsets[i] == offsets[j] or not a.kept
    turns = [Lifetime(4 * places[0].size, i, i, places[0]) for i in range(9)]
    assert len({*allocate(turns)[0]}) == 1


def test_a_chain_needs_two_buffers() -> None:
    chain = [Lifetime(1 << 20, i, i + 1) for i in range(10)]
    assert allocate(chain)[1] == 2 << 20
    assert allocate([]) == ([], 0)


def test_a_plan_is_a_file_that_reads_back(tmp_path: Path) -> None:
    graph = optimise(load_network(residual()))
    plan, arrangement = make_plan(graph, shaken(1), CPU)
    plan.save(tmp_path / "plan")
    read = Plan.load(tmp_path / "plan")
    assert str(read) == str(plan)
    again = follow_plan(graph, read, CPU)
    assert [s.program.ir for s in again.steps] == [s.program.ir for s in arrangement.steps]
    assert again.buffers == arrangement.buffers


def test_names_may_hold_anything() -> None:
    form = Form((NCHW, NHWC), NHWC, "Concat", 1.5e-6)
    plan = Plan("a\tb\nc", {"in put/0:ü": (1, 3), "scalar": ()}, {"x\ty\\z": form}, 2e-6)
    assert Plan.parse(str(plan)) == plan


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("# fastrun plan 1", "# fastrun plan 9", "version 1"),
        ("NCHW>NHWC", "NCHW>NHCW", "line 5"),
        ("total\t", "sum\t", "line 3"),
        ("total\t2.0\n", "", "missing"),
        ("\tConcat", "", "line 5"),
        ("1x3", "1xc", "line 4"),
        ("1x3", "1x" + "9" * 5000, "line 4"),
        ("total\t2.0", "total\t1.2.3", "total"),
        ("total\t2.0", "total\tnan", "total"),
        ("1.0\t", "inf\t", "line 5"),
        ("\tConcat", "\tConcat by -3 rows", "line 5"),
        ("\ty\n", "\t\\d\n", "line 5"),
        ("input\tx\t1x3\n", "input\tx\t1x3\n" * 2, "line 5"),
    ],
)
def test_damaged_plans_are_refused(old: str, new: str, message: str, tmp_path: Path) -> None:
    plan = Plan("n", {"x": (1, 3)}, {"y": Form((NCHW,), NHWC, "Concat", 1e-6)}, 2e-6)
    assert old in str(plan)
    (tmp_path / "plan").write_text(str(plan).replace(old, new))
    with pytest.raises(PlanError, match=message):
        Plan.load(tmp_path / "plan")


def test_plans_of_other_networks_are_refused(tmp_path: Path) -> None:
    graph = optimise(load_network(residual()))
    plan, _ = make_plan(graph, heuristic_choices(CPU), CPU)
    for other, message in [
        (replace(plan, inputs={"x": (1, 3, 33, 29)}), "plan again for these shapes"),
        (replace(plan, forms={"a": plan.forms["y"]}), "does not fit the network"),
        (
            replace(plan, forms=plan.forms | {"y": Form((), NCHW, "Gemm", 0.0)}),
            "at 'y': .* not in >NCHW",
        ),
    ]:
        with pytest.raises(PlanError, match=message):
            follow_plan(graph, other, CPU)
    with pytest.raises(PlanError, match=r"cannot read the plan .*nowhere: No such file"):
        Plan.load(tmp_path / "nowhere")
    with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
        plan.save("/dev/full")


@pytest.mark.parametrize(
    ("tensor", "change", "message"),
    [
        ("k", {"reads": (Layout("NCHW4c"),)}, "at 'k': it can run in NCHW>NCHW .* NCHW4c>NCHW"),
        ("k", {"algorithm": "hardswish"}, "at 'k': it does Softmax, not hardswish"),
        ("s", {"reads": (NCHW8,), "writes": NCHW8}, "at 's': it can run in"),
        ("c", {"algorithm": "pooling(layout=NCHW)"}, "at 'c': unknown algorithm 'pooling'"),
        ("c", {"algorithm": "planar(layout=NCHW9c)"}, "at 'c': planar needs"),
        ("c", {"reads": (NHWC,)}, "at 'c': it can run in .* not in NHWC>"),
    ],
)
def test_what_nothing_can_do_is_refused(
    tensor: str, change: dict[str, object], message: str
) -> None:
    """Layouts no kernel has for a step, names of other operators, schedules that are none."""
    nodes = [
        node("Conv", "x w", "c"),
        node("Slice", "c from to", "s"),
        node("Softmax", "s", "k", axis=1),
        node("Neg", "k", "y"),
    ]
    nodes[1].input.append("channels")
    constants = {
        "w": normal(12, 4, 1, 1), "from": np.array([3]), "to": np.array([12]),
        "channels": np.array([1]),
    }  # fmt: skip
    graph = optimise(load_network(model(nodes, constants)))
    plan, _ = make_plan(graph, only("NCHW"), CPU)
    form = replace(plan.forms[tensor], **change)  # type: ignore[arg-type]
    asked = replace(plan, forms={**plan.forms, tensor: form})
    with pytest.raises(PlanError, match=message) as error:
        follow_plan(graph, Plan.parse(str(asked)), CPU)
    assert "\n" not in str(error.value)


def test_a_schedule_that_cannot_be_built_gives_way() -> None:
    """As on a machine with fewer registers than the plan's."""
    graph = optimise(load_network(residual()))
    plan, _ = make_plan(graph, heuristic_choices(CPU), CPU)
    name = next(iter(plan.forms))
    form = plan.forms[name]
    p = conv_problem(graph, graph.nodes[0])
    layout = layouts_text(form)
    schedule = replace(direct.template.heuristic(p, CPU), layout=layout, tile_w=28, cols=9)
    greedy = direct.template.text(schedule)
    forms = {**plan.forms, name: replace(form, algorithm=greedy)}
    steps = follow_plan(graph, replace(plan, forms=forms), CPU).steps
    assert next(s for s in steps if s.output == name).algorithm != greedy


def test_blocks_of_channels_change_between_kernels_measured_with_either() -> None:
    narrow = "pointwise(layout=NCHW8c, rows=4, cols=3, unroll=4, tiles=8, oc_outer=no, prefetch=0)"
    wide = narrow.replace("8c", "16c").replace("cols=3", "cols=2")
    measured = [Choice(narrow, NCHW8, NCHW8, 2e-6), Choice(wide, NCHW16, NCHW16, 1e-6)]
    p = ConvProblem.parse("conv 1x24x7x7 144x1x1 s1 bias")
    found = {(c.src, c.dst): c for c in crossed(p, measured)}
    assert found.keys() == set(product((NCHW8, NCHW16), repeat=2))
    crossing = found[NCHW8, NCHW16]
    assert "layout=NCHW8c>NCHW16c" in crossing.schedule
    assert "cols=2" in crossing.schedule
    assert crossing.seconds == pytest.approx(1e-6, rel=0.1)
    grouped = ConvProblem.parse("conv 1x32x7x7 32x1x1 s1 g2")
    assert crossed(grouped, measured) == measured


@pytest.mark.parametrize("halves", [True, False])
@pytest.mark.parametrize("cpu", EVERY_CPU[1:])
def test_narrow_tensors_lie_in_half_blocks_where_half_a_vector_takes_half_of_the_time(
    monkeypatch: pytest.MonkeyPatch, cpu: Cpu, halves: bool
) -> None:
    """With 16 lanes 24 channels are three half blocks and 96 whole ones. Nothing is moved."""
    monkeypatch.setattr(Cpu, "halves", property(lambda self: halves))
    cpu = without_tiles(cpu)
    wide, expanded, narrow = (cpu.block * x // 2 for x in (12, 9, 3))
    filters = {
        "w0": weights(wide, wide, 1), "w1": weights(narrow, wide, 1),
        "w2": weights(expanded, narrow, 1), "w3": weights(expanded, 1, 3),
        "w4": weights(narrow, expanded, 1), "w5": weights(wide, narrow, 1),
    }  # fmt: skip
    nodes = [
        conv("x", "wide", "w0"),
        conv("wide", "narrow", "w1"),
        conv("narrow", "expanded", "w2"),
        conv("expanded", "filtered", "w3", 1, group=expanded),
        conv("filtered", "projected", "w4"),
        node("Add", "projected narrow", "sum"),
        conv("sum", "y", "w5"),
    ]
    proto = model(nodes, filters, shape=(1, wide, 14, 14))
    executable = check(proto, heuristic_choices(cpu), cpu=cpu)
    written = {name: form.writes.blocked for name, form in executable.plan.forms.items()}
    narrower = dict.fromkeys(written, cpu.block // 2 if halves else cpu.block)
    assert written == narrower | {"wide": cpu.block, "y": cpu.block}
    moves = [step.work for step in executable.steps if step.work == "reorder"]
    assert len(moves) == 2, moves  # of the input and the output


def test_loading_and_running_import_no_search_and_no_tables(tmp_path: Path) -> None:
    """The built-in network gives the results of the interpreter."""
    script = f"""
        import sys, numpy as np, fastrun
        assert not {{"onnx", "sqlalchemy", "llvmlite"}} & set(sys.modules)
        shapes = {{"input": (1, 3, 64, 64)}}
        network = fastrun.load("squeezenet1.1", policy="heuristic", shapes=shapes)
        x = np.random.default_rng(0).standard_normal((1, 3, 64, 64), dtype=np.float32)
        np.save({str(tmp_path / "y.npy")!r}, network.run({{"input": x}})["logits"])
        heavy = {{"optuna", "pandas", "matplotlib", "sqlalchemy", "rich", "jinja2"}}
        assert not heavy & set(sys.modules), heavy & set(sys.modules)
    """
    lines = "\n".join(line.strip() for line in script.splitlines())
    subprocess.run([sys.executable, "-c", lines], check=True, cwd=ROOT)
    graph = load_network("squeezenet1.1", {"input": (1, 3, 64, 64)})
    x = np.random.default_rng(0).standard_normal((1, 3, 64, 64), dtype=np.float32)
    truth = reference.run(graph, {"input": x})["logits"]
    assert relative_error(np.load(tmp_path / "y.npy"), truth) < 1e-4


def test_load_refuses_nonsense() -> None:
    with pytest.raises(ValueError, match="use one of cached, heuristic"):
        load("squeezenet1.1", policy="fastest")
    with pytest.raises(ValueError, match="0 threads"):
        load("squeezenet1.1", threads=0)
    with pytest.raises(GraphError, match="did you mean"):
        load("squeezenet")


def test_nothing_tuned_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastrun.tuner.networks.load.cache_root", lambda: tmp_path)
    with pytest.warns(UserWarning, match="fastrun tune") as warnings:
        network = load(residual())
    assert len(warnings) == 1
    x = normal(2, 3, 33, 29)
    assert network.run({"x": x})["y"].shape == (2, 10)


def store_two(database: Path, seconds: tuple[float, float]) -> tuple[str, str]:
    """Records of today's and of yesterday's code for the 5x5 layer; the texts of the schedules."""
    graph = optimise(load_network(residual()))
    p = next(x.problem for x in convolutions(graph) if x.problem.kernel == (5, 5))
    schedule = replace(direct.template.heuristic(p, CPU), unroll=3, rows=1)
    today, yesterday = (direct.template.text(replace(schedule, rows=r)) for r in (1, 2))
    kernels = f"{toolchain().partition(',')[0]}, kernels of yesterday"
    made = {
        today: (direct.template.program(p, schedule, CPU).ir_hash, toolchain()),
        yesterday: ("other code", kernels),
    }
    with Database(database) as store:
        for (text, (ir_hash, tools)), x in zip(made.items(), seconds, strict=True):
            made_by = replace(
                record(problem=str(p), schedule=text, samples=(x,) * 3),
                machine=CPU.fingerprint,
                ir_hash=ir_hash,
                toolchain=tools,
            )
            store.add(made_by)
    return today, yesterday


def algorithms(network: Executable) -> list[str]:
    return [form.algorithm for form in network.plan.forms.values()]


def test_what_was_measured_decides(tmp_path: Path) -> None:
    # Other layouts of this layer could save less than this elsewhere.
    today, yesterday = store_two(tmp_path / "records.db", (1e-3, 2e-3))
    with pytest.warns(UserWarning, match="no current measurement of 3 of 4"):
        chosen = algorithms(load(residual(), database=tmp_path / "records.db"))
    assert today in chosen
    assert yesterday not in chosen
    assert today not in algorithms(load(residual(), policy="heuristic"))


def test_where_an_older_generator_leads_the_heuristic_chooses(tmp_path: Path) -> None:
    """The runner-up of old measurements may be slow beside today's code."""
    store_two(tmp_path / "records.db", (2e-9, 1e-9))
    with pytest.warns(UserWarning, match="no current measurement of 4 of 4"):
        chosen = algorithms(load(residual(), database=tmp_path / "records.db"))
    assert chosen == algorithms(load(residual(), policy="heuristic"))


def in_two_layouts(p: ConvProblem) -> list[Choice]:
    """The first layer in NHWC, the others in blocks: whatever the processor, there is a move."""
    layout = Layout("NHWC" if p.c == 3 else "NCHW8c")
    schedule = replace(direct.template.heuristic(p, CPU), layout=str(layout), tile_h=1, cols=1)
    return [Choice(direct.template.text(schedule), layout, layout, 1e-5)]


def test_moves_are_expected_to_take_their_time() -> None:
    graph = optimise(load_network(residual()))
    costs = Costs(move=lambda shape, src, dst: 1.25e-6)
    plan, arrangement = make_plan(graph, in_two_layouts, CPU, costs)
    for steps in (arrangement.steps, follow_plan(graph, plan, CPU, costs).steps):
        moves = [step.seconds for step in steps if step.work == "reorder"]
        assert moves
        assert set(moves) == {1.25e-6}


def test_guesses_know_what_widening_bytes_costs() -> None:
    p = ConvProblem.parse("conv 1x32x14x14 32x3x3 s1 p1 g32")
    q = replace(p, types="u8s8>u8")
    for cpu, widens in ((Cpu.avx2(), True), (replace(Cpu.avx2(), features="+avxvnni"), False)):
        seconds, of_bytes = (min(c.seconds for c in heuristic_choices(cpu)(x)) for x in (p, q))
        assert (of_bytes > seconds) == widens


@pytest.mark.parametrize(
    ("text", "measured"),
    [
        ("1x64x56x56 64x3x3 s1 p1", 316e-6),  # Winograd
        ("1x256x14x14 256x3x3 s1 p1", 431e-6),
        ("1x64x56x56 128x3x3 s2 p1", 258e-6),
        ("1x3x224x224 32x3x3 s2 p1", 80.4e-6),
        ("1x512x28x28 128x1x1 s1 p0", 225e-6),
        ("1x1024x14x14 256x1x1 s1 p0", 248e-6),  # Strassen in float32
        ("1x16x112x112 24x1x1 s1 p0", 49.1e-6),  # rounding results takes most of it
        ("1x48x112x112 48x3x3 s2 p1 g2", 196e-6),
        ("1x240x28x28 240x5x5 s1 p2 g240", 47.6e-6),
        ("1x24x112x112 24x3x3 s1 p1 g24", 57.7e-6),
        ("1x2048x1x1 1000x1x1 s1 p0", 61e-6),  # reading weights takes most of it
        ("1x480x1x1 120x1x1 s1 p0", 1.6e-6),
    ],
)
def test_guesses_of_integers_are_near_what_was_measured(text: str, measured: float) -> None:
    """The measurements are of a Zen 4 with AVX-512 VNNI, in networks on one thread."""
    cpu = replace(Cpu.avx512(), features="+avx512vnni")
    p = ConvProblem.parse(f"conv {text} u8s8>u8")
    choose = heuristic_choices(cpu)
    expected = min(c.seconds for c in choose(p))
    assert measured / 1.5 < expected < 1.5 * measured
    # A layer of a quantised network stays in integers.
    assert expected < min(c.seconds for c in choose(replace(p, types="")))
