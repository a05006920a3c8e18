"""A run as a trace, and a network's graph with the times of its nodes."""

from __future__ import annotations

import itertools
import json
import xml.etree.ElementTree as ET
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from fastrun.graph.core.model import Graph
from fastrun.graph.core.problems import convolutions
from fastrun.graph.core.work import flops
from fastrun.graph.networks import load_network
from fastrun.graph.passes.pipeline import optimise
from fastrun.graph.plan.choices import heuristic_choices
from fastrun.graph.plan.tasks import tasks
from fastrun.graph.planner import make_plan
from fastrun.graph.runtime.executable import Executable
from fastrun.kernels.core.cpu import Cpu
from fastrun.main import main
from fastrun.tuner.report.network_graph import annotated, drawing, task_times
from fastrun.tuner.report.trace import trace
from tests.graph.test_networks_run import residual
from tests.support.graph_models import model, node, normal
from tests.support.peer import assert_same, by_onnxruntime

CPU = Cpu.host()


@pytest.fixture(scope="module")
def graph() -> Graph:
    return optimise(load_network(residual()))


@pytest.fixture(scope="module", params=[1, 2])
def network(request: pytest.FixtureRequest, graph: Graph) -> Executable:
    plan, arrangement = make_plan(graph, heuristic_choices(CPU), CPU, threads=request.param)
    return Executable.of(arrangement, CPU, request.param, plan)


def test_a_timeline_has_no_gaps(network: Executable) -> None:
    rows = network.timeline(3)
    threads = {row["thread"] for row in rows}
    assert threads == set(range(network.threads))
    for thread in threads:
        own = [row for row in rows if row["thread"] == thread]
        assert [row["stage"] for row in own] == list(range(len(own)))
        assert {row["step"] for row in own} == set(range(len(network.steps)))
        for before, after in itertools.pairwise(own):
            end = before["start"] + before["working"] + before["waiting"]
            assert after["start"] == pytest.approx(end, abs=1e-9)


def test_steps_know_their_operations_and_bytes(graph: Graph, network: Executable) -> None:
    wanted = sum(p.flops * count for p, count, _ in convolutions(graph))
    dense = [task.node for task in tasks(graph) if task.node.work.startswith("Gemm")]
    wanted += sum(flops(graph, one) for one in dense)
    assert dense
    assert sum(step.flops for step in network.steps) == wanted
    assert all(step.nbytes > 0 for step in network.steps if step.work != "halo")


def test_products_count_two_operations_for_each_multiply_add() -> None:
    nodes = [node("ConvTranspose", "x w", "a", strides=[2, 2]), node("MatMul", "a m", "y")]
    weights = {"w": normal(4, 6, 2, 2), "m": normal(16, 5)}
    up, product = load_network(model(nodes, weights)).nodes
    graph = load_network(model(nodes, weights))
    assert flops(graph, up) == 2 * 4 * 8 * 8 * 6 * 2 * 2
    assert flops(graph, product) == 2 * 6 * 16 * 16 * 5


def test_a_trace_has_a_track_for_each_thread(network: Executable) -> None:
    text = json.dumps(trace(network.timeline(3), "small", None), allow_nan=False)
    found = json.loads(text)["traceEvents"]
    # What the format asks for: a phase, a process, a name; times of spans, numbers of counters.
    assert {event["ph"] for event in found} == {"M", "X", "C"}
    assert all(event["pid"] == 1 and event["name"] for event in found)
    assert all(event["dur"] >= 0 and event["ts"] >= 0 for event in found if event["ph"] == "X")
    counters = [event["args"]["GFLOP/s"] for event in found if event["ph"] == "C"]
    assert counters
    assert min(counters) >= 0
    tracks = defaultdict[int, list[dict[str, Any]]](list)
    for event in found:
        if event["ph"] == "X":
            tracks[event["tid"]].append(event)
    assert set(tracks) == set(range(network.threads))
    for events in tracks.values():
        # Spans of a track that overlap by a nanosecond are drawn inside each other.
        for before, after in itertools.pairwise(events):
            assert round(1e3 * (before["ts"] + before["dur"])) <= round(1e3 * after["ts"])
    [name] = [e["args"]["name"] for e in found if e["name"] == "process_name"]
    assert name == "small"
    conv = next(e for e in found if e.get("cat", "").startswith("Conv"))
    assert conv["args"].keys() >= {"algorithm", "layouts", "output", "bytes", "GFLOP/s"}


def test_the_annotated_network_is_the_network(graph: Graph, network: Executable) -> None:
    times = task_times(graph, network, network.profile(2))
    written = annotated(graph, times)
    onnx.checker.check_model(written, full_check=True)
    feeds = {name: normal(*graph.shape(name)) for name in graph.inputs}
    truth, found = by_onnxruntime(residual(), feeds), by_onnxruntime(written, feeds)
    assert truth
    assert found
    assert_same(found, truth)
    notes = [{p.key: p.value for p in one.metadata_props} for one in written.graph.node]
    assert all("fastrun.algorithm" in note for note in notes)
    timed = {
        note["fastrun.algorithm"]: float(note["fastrun.microseconds"])
        for note in notes
        if "fastrun.microseconds" in note
    }
    assert any("(layout=" in algorithm for algorithm in timed)
    assert all(np.isfinite(value) for value in timed.values())


def test_times_of_tasks_are_those_of_all_steps(graph: Graph, network: Executable) -> None:
    rows = network.profile(2)
    times = task_times(graph, network, rows)
    placed = [row for one in times for row in (*one.steps, *one.moves)]
    others = [row for row in rows if not any(row is one for one in placed)]
    assert all(row["work"] in ("halo", "reorder") for row in others)
    assert len(placed) + len(others) == len(rows)


def test_a_drawing_has_a_line_for_each_task() -> None:
    nodes = [
        node("Conv", "x w", "a<b", kernel_shape=[1, 1]),
        node("Sigmoid", "a<b", "s"),
        node("Mul", "a<b s", "m"),
        node("Conv", "m w", "c", kernel_shape=[1, 1]),
        node("Add", "c x", "y"),
    ]
    graph = optimise(load_network(model(nodes, {"w": normal(4, 4, 1, 1)})))
    plan, arrangement = make_plan(graph, heuristic_choices(CPU), CPU)
    network = Executable.of(arrangement, CPU, 1, plan)
    times = task_times(graph, network, network.profile(2))
    root = ET.fromstring(drawing(graph, times, "small & simple", 1e-3))
    svg = "{http://www.w3.org/2000/svg}"
    texts = [text.text or "" for text in root.iter(f"{svg}text")]
    assert "small & simple: 1.00 ms" in texts
    for task in tasks(graph):
        assert any(task.node.name in text for text in texts)
    lines = [path.get("d") or "" for path in root.iter(f"{svg}path")]
    assert len(lines) == len(tasks(graph)) + len(graph.inputs)


def test_plan_writes_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "net.onnx"
    onnx.save(residual(), path)
    files = {"--trace": "run.json", "--svg": "net.svg", "--annotate": "noted.onnx"}
    words = [word for name, file in files.items() for word in (name, str(tmp_path / file))]
    assert main(["plan", str(path), "--policy", "heuristic", *words]) == 0
    out, _ = capsys.readouterr()
    assert all(str(tmp_path / file) in out for file in files.values())
    assert json.loads((tmp_path / "run.json").read_text())["traceEvents"]
    assert ET.parse(tmp_path / "net.svg").getroot().tag.endswith("svg")
    assert onnx.load(tmp_path / "noted.onnx").graph.node
    with pytest.raises(SystemExit) as left:
        main(["plan", str(path), "--svg", str(tmp_path / "no" / "x.svg")])
    assert left.value.code == 2
    for name, wrong in {"--trace": "x.txt", "--annotate": path.name}.items():
        assert main(["plan", str(path), name, str(tmp_path / wrong)]) == 2
    assert onnx.load(path).producer_name == residual().producer_name


@pytest.mark.parametrize(
    ("algorithm", "layouts", "kind"),
    [
        ("amx(layout=NHWC, rows=1, panels=1, tiles=2, cols=2, oc_outer=no, strips=no, terms=1, "
         "chunks=1, stream=no)",
         "NHWC:u8>NHWC:u8", "tdpbusd"),
        ("amx(layout=NHWC, rows=1, panels=1, tiles=2, cols=2, oc_outer=no, strips=no, terms=1, "
         "chunks=1, stream=no)",
         "NHWC>NHWC", "tdpbf16ps"),
        ("amx(layout=NHWC, rows=1, panels=1, tiles=2, cols=2, oc_outer=no, strips=no, terms=2, "
         "chunks=1, stream=no)",
         "NHWC,NHWC>NHWC", ""),
        ("max pool", "NHWC>NHWC", ""),
    ],
)  # fmt: skip
def test_shares_are_of_the_peak_of_a_steps_products(
    algorithm: str, layouts: str, kind: str
) -> None:
    asked = []

    class Machine:
        def peak_of(self, threads: int, dot: str) -> float:
            asked.append(dot)
            return 1e9

    row = {
        "thread": 0, "step": 0, "start": 0.0, "working": 1e-3, "waiting": 0.0, "name": "a",
        "work": "Conv", "algorithm": algorithm, "layouts": layouts, "output": "y",
        "flops": 5e5, "nbytes": 0,
    }  # fmt: skip
    found = trace([row], "", Machine())  # type: ignore[arg-type]
    assert asked == [kind]
    assert "'share of peak': '50%'" in str(found)
