"""The stored notebooks: executed, clean, comparable, and each with what a chapter must have."""

import copy
import re
from pathlib import Path

import nbformat
import pytest
import yaml

import course
from course import data

ROOT = Path(__file__).parents[2]
SETUP = (Path(__file__).parent / "setup_cell.txt").read_text(encoding="utf-8").strip()
LARGEST = 1_500_000  # bytes
METADATA = {"kernelspec", "language_info", "course"}
CELL_METADATA = {"tags", "mystnb"}
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:work|root|tmp|home|Users|content|usr|opt|var)/\w|[A-Z]:\\\\Users")


def faults(notebook, name: str) -> list[str]:
    """What is wrong with a stored notebook, in words; an empty list for a good one."""
    found = []
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    outputs = [output for cell in code for output in cell.outputs]

    def tagged(*tags):
        return [cell for cell in code if set(tags) & set(cell.metadata.get("tags", []))]

    # ---- executed, from top to bottom, without a word on stderr
    counts = [cell.execution_count for cell in code]
    if counts != list(range(1, len(code) + 1)):
        found.append(f"not executed in order: {counts}")
    if any(output.output_type == "error" for output in outputs):
        found.append("a cell holds an error")
    if any(output.get("name") == "stderr" for output in outputs):
        found.append("a cell prints to stderr")

    # ---- nothing of the machine, nothing volatile
    texts = [cell.source for cell in notebook.cells] + [text for output in outputs for text in words(output)]
    paths = [match[0] for text in texts for match in MACHINE_PATH.finditer(text)]
    if paths:
        found.append(f"paths of a machine: {paths}")
    if set(notebook.metadata) - METADATA or any(
        set(cell.metadata) - CELL_METADATA for cell in notebook.cells
    ):
        found.append("metadata that changes from run to run; `make notebooks` removes it")
    if any("widget-view" in kind for output in outputs for kind in output.get("data", {})):
        found.append("a stored widget, which no page can show; `make notebooks` removes it")

    # ---- compared
    unseen = tagged("nbval-ignore-output", "nbval-skip")
    if 3 * len(unseen) > len(code):
        found.append(f"{len(unseen)} of {len(code)} code cells are not compared")

    # ---- what a chapter has
    if not code or code[0].source.strip() != SETUP:
        found.append("the first code cell is not the standard set-up cell, tests/notebooks/setup_cell.txt")
    if len(tagged("parameters")) != 1:
        found.append("there must be one cell tagged parameters")
    elif not {"profile", "dataset", "seed"} <= set(
        re.findall(r"^(\w+) *=", tagged("parameters")[0].source, re.M)
    ):
        found.append("the parameters cell must set profile, dataset and seed")
    if tagged("parameters") and 'profile = "quick"' not in tagged("parameters")[0].source:
        found.append("the stored profile is not quick")
    repository = course.address().removeprefix("https://github.com/")
    if f"https://colab.research.google.com/github/{repository}/blob/main/notebooks/{name}" not in texts[0]:
        found.append("the first cell has no Colab badge that leads to this notebook")
    declared = notebook.metadata.get("course", {}).get("datasets", [])
    if not declared or set(declared) - set(data.NAMES):
        found.append(f"metadata course.datasets must name data sets of {', '.join(data.NAMES)}: {declared}")
    for output in outputs:
        for kind in output.get("data", {}):
            if kind.startswith("image/") and not output.metadata.get(kind, {}).get("alt"):
                found.append(
                    "a picture without a text alternative; show.figure(picture, alt=...) gives it one"
                )
    return found


def words(output) -> list[str]:
    """The texts of an output; the bytes of pictures are none."""
    kinds = output.get("data", {})
    return [output.get("text", ""), *(str(kinds[kind]) for kind in kinds if not kind.startswith("image/png"))]


def test_notebook_is_fit_to_publish(chapter):
    assert faults(nbformat.read(chapter, as_version=4), chapter.name) == []
    assert chapter.stat().st_size <= LARGEST


def test_every_notebook_is_a_page_of_the_book_and_a_row_of_the_readme():
    chapters = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
    assert chapters
    parts = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))["parts"]
    pages = [Path(page["file"]) for part in parts for page in part["chapters"]]
    assert sorted(page.name for page in pages if page.parent.name == "notebooks") == chapters
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    index = (ROOT / "book" / "index.md").read_text(encoding="utf-8")
    for chapter in chapters:
        assert f"(notebooks/{chapter}.ipynb)" in readme
        assert f"notebooks/{chapter}>" in index


def unexecuted(notebook):
    notebook.cells[-1].execution_count = None


def out_of_order(notebook):
    notebook.cells[1].execution_count = 9


def failed(notebook):
    notebook.cells[-1].outputs = [nbformat.v4.new_output("error", ename="ValueError", evalue="no")]


def warned(notebook):
    notebook.cells[-1].outputs = [nbformat.v4.new_output("stream", name="stderr", text="careful")]


def of_a_machine(notebook):
    notebook.cells[-1].outputs = [nbformat.v4.new_output("stream", text="saved to " + "/" + "home/me/x.png")]


def raw_papermill(notebook):
    notebook.metadata["papermill"] = {"duration": 1.0}


def mostly_ignored(notebook):
    for cell in notebook.cells[3:]:
        cell.metadata["tags"] = ["nbval-ignore-output"]


def other_setup(notebook):
    notebook.cells[1].source = "import course"


def no_parameters(notebook):
    notebook.cells[2].metadata.pop("tags")


def smoke_stored(notebook):
    notebook.cells[2].source = notebook.cells[2].source.replace("quick", "smoke")


def no_badge(notebook):
    notebook.cells[0].source = "# Title"


def no_datasets(notebook):
    notebook.metadata["course"] = {"datasets": ["cats"]}


def blind_picture(notebook):
    notebook.cells[-1].outputs = [nbformat.v4.new_output("display_data", data={"image/png": "aGk="})]


@pytest.fixture
def good():
    """A small notebook without a fault."""
    new = nbformat.v4
    repository = course.address().removeprefix("https://github.com/")
    badge = f"https://colab.research.google.com/github/{repository}/blob/main/notebooks/x.ipynb"
    parameters = 'profile = "quick"\ndataset = "glyphs"\nseed = 0'
    sources = [SETUP, parameters, "1 + 1", "2 + 2"]
    cells = [new.new_code_cell(source, execution_count=i) for i, source in enumerate(sources, 1)]
    cells[1].metadata["tags"] = ["parameters"]
    metadata = {"course": {"datasets": ["glyphs"]}}
    return new.new_notebook(
        cells=[new.new_markdown_cell(f"# Title\n\n[Colab]({badge})"), *cells], metadata=metadata
    )


def test_the_guard_passes_a_good_notebook(good):
    assert faults(good, "x.ipynb") == []


@pytest.mark.parametrize(
    "spoil, complaint",
    [
        (unexecuted, "not executed in order"),
        (out_of_order, "not executed in order"),
        (failed, "holds an error"),
        (warned, "stderr"),
        (of_a_machine, "paths of a machine"),
        (raw_papermill, "metadata"),
        (mostly_ignored, "not compared"),
        (other_setup, "set-up cell"),
        (no_parameters, "tagged parameters"),
        (smoke_stored, "not quick"),
        (no_badge, "no Colab badge"),
        (no_datasets, "course.datasets"),
        (blind_picture, "text alternative"),
    ],
)
def test_the_guard_sees(good, spoil, complaint):
    spoiled = copy.deepcopy(good)
    spoil(spoiled)
    found = faults(spoiled, "x.ipynb")
    assert len(found) == 1 and complaint in found[0]
