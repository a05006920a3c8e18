"""What models of times know when some networks, or a machine, are left out of their data."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.problem import ConvProblem
from fastrun.tuner.model.cost_model import CostModel, Times, times
from fastrun.tuner.networks.targets import read_target
from fastrun.tuner.records.record import Record
from fastrun.tuner.store import exchange
from fastrun.tuner.store.database import Database

MODEL, OTHER, BOTH = "model", "model of the other processor", "model of both"

# The fingerprint tells which of LLVM's names a processor has, which no manifest holds.
_NAMES = (
    *("znver2", "znver3", "znver4", "znver5", "haswell", "skylake", "skylake-avx512"),
    *("cascadelake", "icelake-client", "icelake-server", "rocketlake", "sapphirerapids"),
    *("graniterapids", "x86-64-v3", "x86-64-v4"),
)


@dataclass(frozen=True)
class Data:
    """What was measured on a processor and on others, and a model that knows others already."""

    cpu: Cpu
    own: Sequence[Times]
    others: Sequence[Times]
    before: CostModel | None = None

    @classmethod
    def of(
        cls, records: Iterable[Record], cpus: Sequence[Cpu], before: CostModel | None = None
    ) -> Data:
        """The data about the first of some processors."""
        found = times(records, cpus)
        own, others = ([g for g in found if (g.cpu is cpus[0]) == mine] for mine in (True, False))
        return cls(cpus[0], own, others, before)

    def without(self, problems: Iterable[ConvProblem]) -> Data:
        """What is left without all shapes of some problems, whatever follows the convolution."""
        left_out = set(map(shape, problems))
        own, others = (
            [g for g in part if shape(g.problem) not in left_out]
            for part in (self.own, self.others)
        )
        return replace(self, own=own, others=others)

    def models(self) -> dict[str, CostModel]:
        """A model of the processor's data, one of the others', and one of both.

        The last two are missing if there is nothing about others.
        """
        found = {MODEL: CostModel.learnt(self.own)}
        if self.others or self.before:
            found[OTHER] = self.before or CostModel.learnt(self.others)
            found[BOTH] = CostModel.learnt([*self.own, *self.others], before=self.before)
        return found


def shape(p: ConvProblem) -> ConvProblem:
    """A problem without its epilogue, which hardly matters to what is fast."""
    return replace(p, bias=False, add=False, activation="")


def read_records(urls: Sequence[str]) -> list[Record]:
    """The records of databases and of files that `fastrun db export` wrote; one thread, hot."""
    found: list[Record] = []
    for url in urls:
        if url.endswith((".jsonl", ".json", ".gz")):
            stored, _ = exchange.read(Path(url))
            found += [r for r in stored if r.threads == 1 and r.regime == "hot"]
            continue
        with Database(url, read_only=True) as database:
            found += database.records(threads=1, regime="hot")
    return found


def folds_of(networks: Sequence[str], count: int | None) -> list[list[ConvProblem]]:
    """The convolutions of each network, or of so many groups of networks."""
    folds: list[list[ConvProblem]] = [[] for _ in range(count or len(networks))]
    for number, text in enumerate(networks):
        posed = (p for p, _ in read_target(text).problems)
        folds[number % len(folds)] += [p for p in posed if isinstance(p, ConvProblem)]
    return folds


def data_options(parser: ArgumentParser) -> None:
    """The options that say what there is to learn from: records, and what knows other machines."""
    parser.add_argument("--data", nargs="+", required=True, metavar="DB", help="learn from these")
    parser.add_argument(
        "--machine", type=Path, action="append", default=[], metavar="FILE",
        help="manifest of another processor in the data (fastrun doctor --json)",
    )  # fmt: skip
    parser.add_argument(
        "--before", type=Path, metavar="FILE", help="a model of other processors, to start from"
    )


def read_machine(path: Path) -> Cpu:
    """The processor of a manifest, as `fastrun doctor --json` writes it.

    Raises:
        ValueError: none of the known names of LLVM gives the manifest's fingerprint.
    """
    about = json.loads(path.read_text())["environment"]
    wide = "+avx512f" in about["features"].split(",")
    for name in _NAMES:
        cpu = replace(
            Cpu.avx512() if wide else Cpu.avx2(),
            name=name,
            **{x: about[x] for x in ("model", "features", "l1", "l2", "l3", "cores")},
        )
        if cpu.fingerprint == about["machine"]:
            return cpu
    raise ValueError(f"{path} is of a processor whose name is not known")
