"""Other settings of peers beside those of `fastrun bench`, and what their own tools measure.

    python -m fastrun.benchmarks.experiments.settings [NETWORK ...] [--threads N] [--rounds N]
        [--tool-seconds S] [--csv FOLDER]

Each engine loads a network once with every setting, and all of them run in turns. Then the engine's
own benchmark tool runs the network in a process of its own, three times by turns with our way to
time it: onnxruntime's test tool says the mean of its calls, OpenVINO's `benchmark_app` the median.
The wheels of ncnn and MNN have no such tool.
"""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
import tempfile
from argparse import ArgumentParser
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pandas as pd

from fastrun.benchmarks import report
from fastrun.benchmarks.experiments.command import show, write_csv
from fastrun.benchmarks.peers import LoadError, Session, missing, mnn, ncnn, openvino, ort, shapes
from fastrun.benchmarks.race import calls_of, in_turns
from fastrun.graph.networks import find_model
from fastrun.tuner.measure.cores import Cores
from fastrun.tuner.records.statistics import interval_verdict, rounds_interval, typical
from fastrun.tuner.records.units import interval, ms, ratio
from fastrun.tuner.terminal.exits import ended, leave

NETWORKS = ("resnet18", "mobilenetv2")

BENCHED = "as in fastrun bench"
"""The name of the settings that `fastrun bench` uses."""

Options = Mapping[Any, Any]

_ORT: Mapping[str, Options] = {
    BENCHED: {},
    "threads do not spin": {"session.intra_op.allow_spinning": "0"},
    "denormals are zero": {"session.set_denormal_as_zero": "1"},
    "no arena": {"enable_cpu_mem_arena": False},
    "no memory pattern": {"enable_mem_pattern": False},
    "weights outside the arena": {"session.use_device_allocator_for_initializers": "1"},
    "dynamic blocks of tasks": {"session.dynamic_block_base": "4"},
}

_OPENVINO: Mapping[str, Options] = {
    BENCHED: {},
    "one stream for throughput": {"PERFORMANCE_HINT": "THROUGHPUT", "NUM_STREAMS": 1},
    "mode for accuracy": {"EXECUTION_MODE_HINT": "ACCURACY"},
    "denormals are zero": {"CPU_DENORMALS_OPTIMIZATION": True},
    "threads are pinned": {"ENABLE_CPU_PINNING": True},
    "no second thread of a core": {"ENABLE_HYPER_THREADING": False},
    "NHWC at the ends": {"channels last": True},
}

_NCNN: Mapping[str, Options] = {
    BENCHED: {},
    "no Winograd": {"use_winograd_convolution": False},
    "no Winograd F(6,3)": {"use_winograd63_convolution": False},
    "no matrix products": {"use_sgemm_convolution": False},
    "no blocks of channels": {"use_packing_layout": False},
    "denormals stay": {"flush_denormals": 0},
    "threads do not spin": {"openmp_blocktime": 0},
}

# MNN's numbers of its hints.
_ALLOCATOR, _WINOGRAD_MEMORY = 2, 3

_MNN: Mapping[str, Options] = {
    BENCHED: {},
    "much power": {"power": "high"},
    "little power": {"power": "low"},
    "much memory": {"memory": "high"},
    "little memory": {"memory": "low"},
    "memory when it is needed": {_ALLOCATOR: 1},
    "no memory for Winograd": {_WINOGRAD_MEMORY: 0},
}

_MEANS = re.compile(r"avg latency: ([0-9.]+) (ms)")
_MEDIAN = re.compile(r"Median:\s+([0-9.]+) (ms|us)")
_SECONDS = {"ms": 1e-3, "us": 1e-6}

_TURNS = 3


@dataclass(frozen=True)
class Tool:
    """An engine's own benchmark tool, run by Python.

    `words` are those of the command for a model's file, a number of threads, and seconds for about
    so many calls; `says` finds the time of a call and its unit in what it prints.
    """

    words: Callable[[Path, int, float, int], Sequence[str]]
    says: re.Pattern[str]


@dataclass(frozen=True)
class Swept:
    """An engine: its settings by name, how it loads a model with one, and its tool, if any."""

    settings: Mapping[str, Options]
    load: Callable[[onnx.ModelProto, int, Options], Session]
    tool: Tool | None = None


def _ort_with(model: onnx.ModelProto, threads: int, options: Options) -> Session:
    entries = {k: v for k, v in options.items() if "." in k}
    attributes = {k: v for k, v in options.items() if "." not in k}
    return ort.load(model, threads, entries=entries, attributes=attributes)


def _openvino_with(model: onnx.ModelProto, threads: int, options: Options) -> Session:
    more = {"INFERENCE_PRECISION_HINT": "f32", **options}
    inner = more.pop("channels last", False)
    return openvino.compiled(openvino.read(model), threads, inner, more)


def _ncnn_with(model: onnx.ModelProto, threads: int, options: Options) -> Session:
    return ncnn.load(model, threads, more=options)


def _mnn_with(model: onnx.ModelProto, threads: int, options: Options) -> Session:
    config = {k: v for k, v in options.items() if isinstance(k, str)}
    hints = {k: v for k, v in options.items() if k not in config}
    return mnn.load(model, threads, config=config, hints=hints)


def _ort_tool(model: Path, threads: int, seconds: float, calls: int) -> Sequence[str]:
    # It has no option for threads, but takes as many as the process has cores.
    return ["-m", "onnxruntime.tools.onnxruntime_test", str(model), str(calls)]


def _openvino_tool(model: Path, threads: int, seconds: float, calls: int) -> Sequence[str]:
    run = "from openvino.tools.benchmark.main import main; main()"
    return [
        # With a hint it takes no number of threads; one stream is what the hint would choose.
        *("-c", run, "-m", str(model), "-d", "CPU", "-hint", "none", "-api", "sync"),
        *("-nstreams", "1", "-nireq", "1", "-nthreads", str(threads), "-pin", "NO"),
        *("-infer_precision", "f32"),
        *("-t", str(max(1, round(seconds)))),
    ]


ENGINES: Mapping[str, Swept] = {
    "ort": Swept(_ORT, _ort_with, Tool(_ort_tool, _MEANS)),
    "openvino": Swept(_OPENVINO, _openvino_with, Tool(_openvino_tool, _MEDIAN)),
    "ncnn": Swept(_NCNN, _ncnn_with),
    "mnn": Swept(_MNN, _mnn_with),
}


def main(words: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = ArgumentParser(
        prog="python -m fastrun.benchmarks.experiments.settings",
        description=str(__doc__).split("\n")[0],
    )
    parser.add_argument("networks", nargs="*", metavar="NETWORK", default=NETWORKS)
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="(default 1)")
    parser.add_argument("--rounds", type=int, default=20, metavar="N", help="(default 20)")
    parser.add_argument(
        "--tool-seconds",
        type=float,
        default=2.0,
        metavar="S",
        help="of each run of an engine's own tool (default 2; 0: none)",
    )
    parser.add_argument("--csv", type=Path, metavar="FOLDER", help="write the tables to files here")
    arguments = parser.parse_args(words)
    report.introduce((), {})
    engines = {name: swept for name, swept in ENGINES.items() if not _lacks(name)}
    settings, tools = [], []
    for network in arguments.networks:
        model = find_model(network)
        assert isinstance(model, onnx.ModelProto)
        for name, swept in engines.items():
            found = {"network": Path(network).stem, "engine": name, "threads": arguments.threads}
            rows, benched = _swept(swept, model, arguments.threads, arguments.rounds)
            settings += [{**found, **row} for row in rows]
            if arguments.tool_seconds and benched and swept.tool:
                seconds = arguments.tool_seconds
                row = _tool(swept.tool, benched, model, arguments.threads, seconds)
                tools.append({**found, **row})
    _print(pd.DataFrame(settings), pd.DataFrame(tools))
    write_csv(arguments.csv, "settings", pd.DataFrame(settings))
    write_csv(arguments.csv, "tools", pd.DataFrame(tools))
    return 0


def _lacks(name: str) -> bool:
    reason = missing(name)
    if reason:
        report.notice(reason)
    return reason is not None


def _swept(
    swept: Swept, model: onnx.ModelProto, threads: int, rounds: int
) -> tuple[list[dict[str, Any]], Session | None]:
    """A row for each setting of an engine, and the session that `fastrun bench` would time."""
    draw = np.random.default_rng(0)
    inputs = {x: draw.standard_normal(size, np.float32) for x, size in shapes(model).items()}
    sessions: dict[str, Session] = {}
    for name, options in swept.settings.items():
        try:
            session = swept.load(model, threads, options)
        except LoadError as error:
            report.notice(f"{name}: {error}")
            continue
        session.run(inputs)
        sessions[name] = session
    timings = in_turns([calls_of(x) for x in sessions.values()], threads, rounds)
    rows = []
    samples = {name: timing.samples for name, timing in zip(sessions, timings, strict=True)}
    for name, own in samples.items():
        low, high = rounds_interval(samples[BENCHED], own) if name != BENCHED else (1.0, 1.0)
        faster = typical(samples[BENCHED]) / typical(own)
        rows.append(
            {"setting": name, "seconds": typical(own), "faster": faster, "low": low, "high": high}
        )
    return rows, sessions.get(BENCHED)


def _tool(
    tool: Tool, session: Session, model: onnx.ModelProto, threads: int, seconds: float
) -> dict[str, Any]:
    """What the engine's own tool measures, by turns with our samples of the same settings."""
    theirs, ours = [], []
    cores = set(Cores.split(threads).timing)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(model, path)
        for _ in range(_TURNS):
            [timing] = in_turns([calls_of(session)], threads, 10)
            ours.append(typical(timing.samples))
            calls = max(10, round(seconds / ours[0]))
            words = tool.words(path, threads, seconds, calls)
            done = subprocess.run(
                [sys.executable, *words],
                capture_output=True,
                text=True,
                check=False,
                preexec_fn=lambda: os.sched_setaffinity(0, cores),
            )
            theirs.append(seconds_said(tool, done.stdout))
    least = min(theirs), min(ours)
    return {
        "tool": statistics.median(theirs),
        "ours": statistics.median(ours),
        "ratio": statistics.median(t / o for t, o in zip(theirs, ours, strict=True)),
        "least_ratio": least[0] / least[1],
    }


def seconds_said(tool: Tool, printed: str) -> float:
    """The seconds of a call in what a tool printed.

    Raises:
        RuntimeError: there are none.
    """
    said = tool.says.search(printed)
    if said is None:
        raise RuntimeError(f"no time in what the tool printed: {printed[-300:].strip()}")
    return _SECONDS[said[2]] * float(said[1])


def _print(settings: pd.DataFrame, tools: pd.DataFrame) -> None:
    show(
        {
            "network": lambda r: r.network,
            "engine": lambda r: r.engine,
            "threads>": lambda r: str(r.threads),
            "setting": lambda r: r.setting,
            "ms>": lambda r: ms(r.seconds),
            "faster>": lambda r: ratio(r.faster),
            "95 %\ninterval>": lambda r: interval(r.low, r.high),
            "verdict": lambda r: "" if r.setting == BENCHED else interval_verdict(r.low, r.high),
        }
    )(settings)
    if len(tools):
        show(
            {
                "network": lambda r: r.network,
                "engine": lambda r: r.engine,
                "threads>": lambda r: str(r.threads),
                "own tool\nms>": lambda r: ms(r.tool),
                "here\nms>": lambda r: ms(r.ours),
                "tool / here,\nmedian of turns>": lambda r: f"{r.ratio:.3f}",
                "of the least\nof each>": lambda r: f"{r.least_ratio:.3f}",
            }
        )(tools)


if __name__ == "__main__":
    leave(ended("settings", main))
