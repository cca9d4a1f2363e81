"""Execute chapters in the quick profile and store their outputs: what `make notebooks` does.

A notebook is replaced only after it has run to its end, and by one rename. What differs from machine to
machine (times, versions, paths in the metadata) and progress bars are left out of the stored file.

usage: python tools/notebooks.py [NAME ...]     a name is the beginning of a file name: 01
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

FOLDER = Path(__file__).parents[1] / "notebooks"
KEPT = ("kernelspec", "course")  # metadata of a notebook
KEPT_IN_CELL = ("tags", "mystnb")
WIDGET = "application/vnd.jupyter.widget-view+json"
TIMEOUT = 900  # seconds for one cell; a chapter takes 120


def execute(path: Path) -> float:
    """Run one notebook and store it; returns the seconds it took.

    Raises CellExecutionError when a cell fails; the file is then as it was.
    """
    notebook = nbformat.read(path, as_version=4)
    # No widget state is kept: a stored progress bar would show on no page.
    client = NotebookClient(
        notebook, timeout=TIMEOUT, kernel_name="python3", store_widget_state=False, coalesce_streams=True,
        resources={"metadata": {"path": str(path.parent)}},
    )  # fmt: skip
    start = time.monotonic()
    client.execute()
    seconds = time.monotonic() - start
    clean(notebook)
    temporary = path.with_suffix(".part")
    nbformat.write(notebook, temporary)
    os.replace(temporary, path)
    return seconds


def clean(notebook: nbformat.NotebookNode) -> None:
    """Remove what is not the chapter's own: volatile metadata and widgets."""
    notebook.metadata = {key: notebook.metadata[key] for key in KEPT if key in notebook.metadata}
    notebook.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata["language_info"] = {"name": "python"}
    for cell in notebook.cells:
        cell.metadata = {key: cell.metadata[key] for key in KEPT_IN_CELL if key in cell.metadata}
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if WIDGET not in output.get("data", {})]


def main() -> int:
    """Execute the chapters named on the command line, all by default."""
    wanted = sys.argv[1:] or [""]
    chapters = sorted(FOLDER.glob("*.ipynb"))
    paths = [path for path in chapters if path.name.startswith(tuple(wanted))]
    if not paths:
        print(f"no notebook in {FOLDER.name}/ begins with {', '.join(wanted)}", file=sys.stderr)
        return 2
    failed = 0
    for path in paths:
        try:
            seconds = execute(path)
        except CellExecutionError as error:
            failed += 1
            print(f"{path.name}: not stored, a cell failed:\n{error}", file=sys.stderr)
        else:
            print(f"{path.name}: {seconds:.0f} s, {path.stat().st_size / 1e6:.2f} MB", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
