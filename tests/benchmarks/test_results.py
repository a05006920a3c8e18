"""`make results`: its steps, and the section of README that is made from their files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fastrun.benchmarks import readme, results

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "README.md").read_text()
MEASURED = sorted(path.parent for path in (ROOT / "results").glob("*/layers.json"))


def entry(subject: str, group: str, threads: int, engine: str, seconds: float) -> dict[str, Any]:
    return {
        "subject": subject, "group": group, "threads": threads, "engine": engine,
        "seconds": seconds, "overhead": 0.0, "repeats": 1, "samples": [seconds, 9 * seconds],
        "errors": {"max": 1e-6, "rms": 1e-7, "bias": 0.0}, "note": "",
    }  # fmt: skip


def bench(*entries: dict[str, Any]) -> str:
    data = {
        "environment": {
            **{"model": "Some CPU", "cores": 2, "features": "+sse2,+avx2"},
            "time": "2026-01-02T03:04:05",
        },
        "machine": {"peak": 100e9, "noise": 0.05},
        "engines": {"ort": "1.2", "ncnn": "3.4"},
        "results": entries,
    }
    return json.dumps(data)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two layers, of which one is lost on one thread, and a network."""
    layers = [
        entry(name, group, threads, engine, seconds)
        for name, group, threads, times in (
            ("64@56", "3x3", 1, (2.0, 4.0, 8.0)),
            ("ResNet-50 1024-256@14", "1x1", 1, (2.0, 1.0, 9.0)),
            ("64@56", "3x3", 2, (1.0, 3.0, 2.0)),
        )
        for engine, seconds in zip(("ours", "ort", "ncnn"), times, strict=True)
    ]
    whole = [entry("resnet18", "all", 1, e, s) for e, s in (("ours", 0.01), ("ncnn", 0.03))]
    (tmp_path / "layers.json").write_text(bench(*layers))
    (tmp_path / "networks.json").write_text(bench(*whole))
    return tmp_path


def test_section_says_what_the_files_hold(folder: Path) -> None:
    text = readme.section(folder)
    assert "Some CPU (AVX2), 2 cores" in text
    assert "float32, 2026-01-02. Measured peak 100 GFLOP/s" in text
    assert "onnxruntime 1.2, ncnn 3.4" in text
    assert "| 3x3 | 1 | 0 % | 2.00x | 2.00x |" in text
    assert "| all | 2 | 0 % | 1.00x | 2.00x |" in text
    assert "| resnet18 | 10.0 | 30.0 ncnn | 3.00x |" in text
    assert "| layers, 1 thread | 1.00x | 4.24x |" in text


def test_losses_are_named(folder: Path) -> None:
    text = readme.section(folder)
    assert (
        "On 1 thread the best peer is faster on 1 of 2: ResNet-50 1024-256@14 0.500x (ort)" in text
    )
    assert "On 2 threads the best peer is faster on 0 of 1." in text


def test_section_takes_the_place_of_the_old_one(folder: Path) -> None:
    text = readme.section(folder)
    page = readme.replaced(PAGE, text)
    assert text in page
    assert readme.replaced(page, text) == page
    before, after = PAGE.split("<!-- results:")[0], PAGE.split("<!-- results end -->")[1]
    assert page == before + text + after
    with pytest.raises(ValueError, match="results end"):
        readme.replaced("# A page\n", text)


@pytest.mark.skipif(not MEASURED, reason="results/ holds no layers.json")
def test_readme_shows_the_results_there_are() -> None:
    assert any(readme.section(path) in PAGE for path in MEASURED)


def test_missing_results_take_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        readme.main([str(tmp_path)])
    assert (
        "layers.json is missing: `python -m fastrun.benchmarks.results`" in capsys.readouterr().err
    )


def test_steps_leave_their_files(tmp_path: Path) -> None:
    words = ("machine", "tune-1", "records", "layers", "networks", "precision", "pack", "readme")
    assert results.main([*words, "--quick", "--out", str(tmp_path)]) == 0
    machine = json.loads((tmp_path / "machine.json").read_text())
    assert machine["machine"]["peak"] > 0
    assert machine["environment"]["versions"]
    assert (tmp_path / "records.jsonl.gz").stat().st_size > 1000
    text = (tmp_path / "layers.txt").read_text()
    assert text.startswith("fastrun bench --layers")
    assert "\nbegun 20" in text
    [timed, *_] = json.loads((tmp_path / "layers.json").read_text())["results"]
    assert timed["note"].startswith("tuned: ")
    assert (tmp_path / "experiments/pack.csv").exists()
    summary = (tmp_path / "summary.md").read_text()
    assert "| shufflenetv2 |" in summary
    assert "| squeezenet1.1 |" in summary


def test_failed_step_leaves_the_file_as_it_was(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "report.txt").write_text("old")
    assert results.main(["report", "layers", "--quick", "--out", str(tmp_path)]) != 0
    assert (tmp_path / "report.txt").read_text() == "old"
    assert not (tmp_path / "layers.txt").exists()
    assert "report failed" in capfd.readouterr().err


def test_unknown_step_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        results.main(["layer"])
    assert "no step 'layer': there are machine, tune-1" in capsys.readouterr().err
