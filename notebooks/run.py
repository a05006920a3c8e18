"""Run the notebooks with their full budget and store their outputs: `make notebooks`.

    python notebooks/run.py [NOTEBOOK ...]

One that fails, or whose outputs have a flaw, keeps what was stored and is named at the end; the
others run all the same. How long cells took and which Python ran them is not stored, so that the
next run changes results only.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbclient
import nbformat

HERE = Path(__file__).parent

_CELL_SECONDS = 1800  # a cell takes a minute if nothing else runs
_LARGEST = 1 << 20  # bytes of a stored notebook
_FAILURES = (
    nbclient.exceptions.CellExecutionError,
    nbclient.exceptions.CellTimeoutError,
    nbclient.exceptions.DeadKernelError,
)


def read(path: Path) -> Any:
    """The notebook in a file."""
    return nbformat.read(path, as_version=4)


def execute(notebook: Any) -> Any:
    """Run all cells, in this folder; returns the notebook, which has the outputs then.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
        nbclient.exceptions.CellTimeoutError: a cell hangs.
        nbclient.exceptions.DeadKernelError: the process that ran it died.
    """
    metadata = notebook.metadata.copy()
    resources = {"metadata": {"path": str(HERE)}}
    nbclient.NotebookClient(
        notebook,
        timeout=_CELL_SECONDS,
        resources=resources,
        record_timing=False,
        extra_arguments=["--log-level=ERROR"],
    ).execute()
    notebook.metadata = metadata
    return notebook


def flaws(notebook: Any) -> Iterator[str]:
    """What keeps a notebook that was run from being stored."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    outputs = [output for cell in cells for output in cell.outputs]
    if [cell.execution_count for cell in cells] != list(range(1, len(cells) + 1)):
        yield "not run in one go from the top"
    for output in outputs:
        if output.output_type == "error":
            yield f"{output.ename}: {output.evalue}"
        if output.get("name") == "stderr":
            yield f"says on stderr: {output.text.strip()}"
    if not any("image/png" in output.get("data", {}) for output in outputs):
        yield "has no figure"
    text = nbformat.writes(notebook)
    for folder in (HERE.parent, Path.home(), Path(tempfile.gettempdir())):
        if f"{folder}/" in text:
            yield f"shows this machine's folder {folder}"
    if len(text) > _LARGEST:
        yield f"has {len(text) >> 10} KiB, more than {_LARGEST >> 10}"


def main(words: list[str]) -> int:
    """Run and store; 1 if a notebook could not be."""
    failed = []
    for path in map(Path, words) if words else sorted(HERE.glob("*.ipynb")):
        begin, notebook = time.monotonic(), read(path)
        try:
            wrong = list(flaws(execute(notebook)))
        except _FAILURES as error:
            wrong = [str(error)]
        if wrong:
            failed.append(path.name)
        else:
            nbformat.write(notebook, path)
        seconds = time.monotonic() - begin
        print(f"{path.name}: {seconds:.0f} s, {'; '.join(wrong) or 'stored'}", flush=True)
    if failed:
        print(f"not stored: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
