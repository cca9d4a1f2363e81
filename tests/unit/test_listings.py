"""The library's code that chapters show is the code of today: a change of it is seen before the chapters run again."""

import importlib.util
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[2]
CHAPTERS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SPEC = importlib.util.spec_from_file_location("notebooks_tool", ROOT / "tools" / "notebooks.py")
tool = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(tool)


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_stored_listings_are_the_code_of_today(path):
    found = tool.listings(nbformat.read(path, as_version=4))
    assert found, "every chapter shows code of the library"
    for stored, text in found:
        assert stored.data["text/markdown"] == text, "the code has changed: run `make listings`, or the chapter again"


def test_renewing_mends_an_old_listing_and_touches_nothing_else(tmp_path, capsys):
    path = tmp_path / "chapter.ipynb"
    notebook = nbformat.read(CHAPTERS[0], as_version=4)
    tool.listings(notebook)[0][0].data["text/markdown"] = "[course/models/layers.py, line 1](old)"
    nbformat.write(notebook, path)
    tool.renew(path)
    assert capsys.readouterr().out == "chapter.ipynb: 1 listings renewed\n"
    assert nbformat.read(path, as_version=4) == nbformat.read(CHAPTERS[0], as_version=4)


def test_a_listing_that_is_not_stored_is_an_error():
    notebook = nbformat.read(CHAPTERS[0], as_version=4)
    cell = next(cell for cell in notebook.cells if "show.source(" in cell.source)
    cell.outputs = []
    with pytest.raises(ValueError, match="0 listings are stored and"):
        tool.listings(notebook)
