"""Execute chapters in the quick profile and store their outputs: what `make notebooks` does.

A notebook is replaced only after it has run to its end, and by one rename. What differs from machine to
machine (times, versions, paths in the metadata) and progress bars are left out of the stored file.

usage: python tools/notebooks.py [--listings] [NAME ...]     a name is the beginning of a file name: 01

--listings renews only the library's code that chapters show, and its line numbers, without running anything else: after
a change of the library that changes no result.
"""

from __future__ import annotations

import ast
import importlib
import os
import re
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


def listings(notebook: nbformat.NotebookNode) -> list[tuple[nbformat.NotebookNode, str]]:
    """The stored outputs of `show.source`, in order, each with the text that it would have now.

    Only the imports of the notebook are run.
    """
    listing = importlib.import_module("course.show.source").listing
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    trees = [ast.parse(re.sub("^[%!].*", "", cell.source, flags=re.M)) for cell in code]  # without a shell's lines
    imports = [node for tree in trees for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    known: dict = {}
    exec(compile(ast.Module(imports, []), "imports of the notebook", "exec"), known)
    found = []
    for cell, tree in zip(code, trees):
        texts = []
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "show.source":
                options = {word.arg: ast.literal_eval(word.value) for word in node.keywords}
                shown = (eval(ast.unparse(argument), known) for argument in node.args)
                texts += [listing(one, **options) for one in shown]
        stored = [one for one in cell.outputs if one.get("data", {}).get("text/markdown", "").startswith("[course/")]
        if len(stored) != len(texts):
            raise ValueError(f"{len(stored)} listings are stored and {len(texts)} are asked for in: {cell.source}")
        found += zip(stored, texts)
    return found


def renew(path: Path) -> None:
    """Store the listings of one notebook as they would be now."""
    notebook = nbformat.read(path, as_version=4)
    changed = [(stored, text) for stored, text in listings(notebook) if stored.data["text/markdown"] != text]
    for stored, text in changed:
        stored.data["text/markdown"], stored.data["text/plain"] = text, text.split("](")[0].lstrip("[")
    if changed:
        nbformat.write(notebook, path)
    print(f"{path.name}: {len(changed)} listings renewed")


def main() -> int:
    """Execute the chapters named on the command line, all by default."""
    only_listings = "--listings" in sys.argv[1:]
    wanted = [word for word in sys.argv[1:] if word != "--listings"] or [""]
    chapters = sorted(FOLDER.glob("*.ipynb"))
    paths = [path for path in chapters if path.name.startswith(tuple(wanted))]
    if not paths:
        print(f"no notebook in {FOLDER.name}/ begins with {', '.join(wanted)}", file=sys.stderr)
        return 2
    if only_listings:
        for path in paths:
            renew(path)
        return 0
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
