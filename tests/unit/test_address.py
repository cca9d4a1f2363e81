"""The public address is one setting, in pyproject.toml; every copy agrees with it."""

import importlib.util
import re
import shutil
from pathlib import Path

import pytest
import yaml

import course

ROOT = Path(__file__).parents[2]
SERVICES = ("https://github.com/", "https://colab.research.google.com/github/")


def tool(path: Path):
    spec = importlib.util.spec_from_file_location("address_tool", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


address = tool(ROOT / "tools" / "address.py")


def repositories(text: str) -> set[str]:
    """owner/name of every GitHub or Colab link."""
    return {
        match.removesuffix(".git")
        for service in SERVICES
        for match in re.findall(re.escape(service) + r"([\w.-]+/[\w-]+(?:\.[\w-]+)*)", text)
    }


@pytest.mark.parametrize("path", address.files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_copy_agrees(path):
    found = repositories(path.read_text(encoding="utf-8"))
    assert found <= {address.current().removeprefix("https://github.com/")}


def test_the_places_that_must_state_it():
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert config["repository"]["url"] == citation["repository-code"] == address.current() == course.address()


def test_no_other_file_states_it():
    """The library asks course.address(); tests and tools read the setting."""
    name = address.current().removeprefix("https://github.com/")
    known = set(address.files())
    for folder in ("src", "tests", "tools", "book", "benchmarks"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".md", ".txt", ".css", ".cfg", ".svg") and path not in known:
                if "egg-info" not in str(path):
                    assert name not in path.read_text(encoding="utf-8"), path


def test_changing_it_changes_every_copy(tmp_path):
    for path in [*address.files(), ROOT / "tools" / "address.py"]:
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    moved = tool(tmp_path / "tools" / "address.py")
    moved.main("https://github.com/someone/a-fork.of-it")
    assert moved.current() == "https://github.com/someone/a-fork.of-it"
    for path in moved.files():
        assert repositories(path.read_text(encoding="utf-8")) <= {"someone/a-fork.of-it"}


@pytest.mark.parametrize(
    "wrong", ["", "github.com/a/b", "https://github.com/a", "https://github.com/a/b.git", "https://x.org/a/b"]
)
def test_a_wrong_address_changes_nothing(wrong):
    with pytest.raises(SystemExit, match="an address looks like"):
        address.main(wrong)
