"""The notebooks run: in smoke with every data set, and in quick with the outputs that are stored."""

import subprocess
import sys
import time
import xml.etree.ElementTree as xml
from pathlib import Path

import nbformat
import papermill
import pytest
from papermill.exceptions import PapermillExecutionError

import course
from course import measure
from course.train import weights
from course.train.recipes import ddpm

SMOKE, QUICK = 20, 120  # seconds, on two cores that nobody else uses
SANITIZE = Path(__file__).parent / "sanitize.cfg"


def run(chapter: Path, folder: Path, **parameters) -> nbformat.NotebookNode:
    """Execute a notebook in an empty folder, as on Colab, where no file of the repository lies beside it."""
    return papermill.execute_notebook(
        chapter, folder / "out.ipynb", parameters, kernel_name="python3", cwd=folder, progress_bar=False
    )


class Watch:
    """Seconds since its making, as they would be on the machine that the figures of the shipped weights come from.

    A machine that is shared takes longer for everything; 1.9 times has been seen.  So the same sampling is timed at
    both ends and compared with the time that was stored with the weights.  A faster machine gets no bonus.
    """

    def __init__(self):
        self.slowness = [slowness()]
        self.start = time.monotonic()

    def seconds(self) -> float:
        wall = time.monotonic() - self.start
        self.slowness.append(slowness())
        return wall / (sum(self.slowness) / len(self.slowness))


def slowness() -> float:
    """How many times as long as its stored time ``ddpm`` takes for a picture of 50 steps, at least 1 and at most 2."""
    settings, model, facts = weights.settings("ddpm"), weights.load("ddpm"), weights.info("ddpm")
    assert "2 cores" in facts["hardware"], "a GPU's time would make every machine look slow"
    now = measure.milliseconds_per_image(lambda n: ddpm.draw(settings, model, n, steps=5)[0], 64, repeats=3) * 10
    return min(max(now / facts["metrics"]["ms_per_image"], 1.0), 2.0)


def test_smoke(chapter, fitting, tmp_path, record_time):
    watch = Watch()
    run(chapter, tmp_path, profile="smoke", dataset=fitting)
    seconds = watch.seconds()
    record_time((f"{chapter.stem}, smoke, {fitting}", seconds, SMOKE))
    assert seconds <= SMOKE
    assert [path.name for path in tmp_path.iterdir()] == ["out.ipynb"], "a notebook leaves no files behind"


def test_stored_outputs_are_what_the_code_gives(chapter, tmp_path, record_time):
    report = tmp_path / "report.xml"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--nbval",
        "--nbval-current-env",
        "-q",
        "-p",
        "no:cacheprovider",
    ]
    command += ["--nbval-sanitize-with", str(SANITIZE), f"--junitxml={report}", str(chapter)]
    watch = Watch()
    done = subprocess.run(command, cwd=chapter.parent, capture_output=True, text=True)
    seconds = watch.seconds()
    record_time((f"{chapter.stem}, quick, outputs compared", seconds, QUICK))
    cells = [cell for cell in nbformat.read(chapter, as_version=4).cells if cell.cell_type == "code"]
    suite = next(xml.parse(report).iter("testsuite"))
    # After a failing cell nbval marks the later ones as expected to fail: they count as failed here.
    failed = sum(int(suite.get(key)) for key in ("failures", "errors", "skipped"))
    assert done.returncode == 0 and failed == 0, f"{failed} cells differ\n{done.stdout[-8000:]}"
    assert int(suite.get("tests")) == len(cells), "a cell was not compared"
    assert seconds <= QUICK


@pytest.mark.parametrize("name, value", [("dataset", "mnits"), ("datasets", "glyphs"), ("profile", "fast")])
def test_a_wrong_parameter_stops_at_once_with_the_choices(chapter, name, value, tmp_path):
    start = time.monotonic()
    with pytest.raises(PapermillExecutionError) as failure:
        run(chapter, tmp_path, **{name: value})
    assert time.monotonic() - start <= SMOKE
    assert failure.value.ename == course.UserError.__name__
    allowed = nbformat.read(chapter, as_version=4).metadata["course"]["datasets"]
    wrong, choice = (
        (name, "dataset") if name == "datasets" else (value, "smoke" if name == "profile" else allowed[0])
    )
    assert wrong in failure.value.evalue and choice in failure.value.evalue
