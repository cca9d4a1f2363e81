"""What the tests of the notebooks share: the list of chapters, and a table of run times at the end."""

from pathlib import Path

import nbformat
import pytest

FOLDER = Path(__file__).parents[2] / "notebooks"
EMBEDDED = ("glyphs", "digits", "shapes", "shapes_video")  # data sets that need no network

times = pytest.StashKey[list]()


def pytest_generate_tests(metafunc):
    """`chapter` is the path of a notebook; `fitting` one of its data sets that need no network."""
    chapters = sorted(FOLDER.glob("*.ipynb"))
    if "fitting" in metafunc.fixturenames:
        pairs = [(chapter, dataset) for chapter in chapters for dataset in datasets(chapter)]
        metafunc.parametrize("chapter, fitting", pairs, ids=[f"{c.stem}-{d}" for c, d in pairs])
    elif "chapter" in metafunc.fixturenames:
        metafunc.parametrize("chapter", chapters, ids=[chapter.stem for chapter in chapters])


def datasets(chapter: Path) -> list[str]:
    """The data sets a notebook declares under the metadata key "course", as far as they are embedded."""
    declared = nbformat.read(chapter, as_version=4).metadata.get("course", {}).get("datasets", [])
    return [name for name in declared if name in EMBEDDED]


@pytest.fixture
def record_time(request):
    """Call it with a label, seconds and the limit, to have them in the table at the end."""
    return request.config.stash.setdefault(times, []).append


def pytest_terminal_summary(terminalreporter, config):
    rows = config.stash.get(times, [])
    if rows:
        terminalreporter.section("run times of the notebooks")
        for label, seconds, limit in rows:
            terminalreporter.write_line(f"{label:<45}{seconds:6.1f} s of {limit:.0f} s")
