"""The set-up cell, as it runs on Colab: PyTorch is there, the course is not."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CELL = (Path(__file__).parent / "setup_cell.txt").read_text(encoding="utf-8")
STATE = """
import importlib.metadata, json, torch, torchvision
installed = sorted(d.name for d in importlib.metadata.distributions(path=[PURELIB]))
modules = [value for module in (torch, torchvision) for value in (module.__version__, module.__file__)]
print(json.dumps([*modules, installed]))
"""


@pytest.fixture(scope="module")
def colab(tmp_path_factory):
    """Python of a fresh environment that sees all packages of this one except the course."""
    folder = tmp_path_factory.mktemp("colab")
    subprocess.run([sys.executable, "-m", "venv", folder / "env"], check=True)
    python = folder / "env" / "bin" / "python"
    seen = folder / "seen"
    seen.mkdir()
    for package in Path(sysconfig.get_path("purelib")).iterdir():
        if not package.name.startswith(("course", "__editable__", "pip", "distutils-precedence")):
            (seen / package.name).symlink_to(package)
    purelib = sysconfig.get_path("purelib", vars={"base": str(folder / "env")})
    Path(purelib, "seen.pth").write_text(f"{seen}\n")
    return python, purelib


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A repository on this disk with the working tree's package, in the form that pip takes."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(
        ROOT / "src" / "course", folder / "src" / "course", ignore=shutil.ignore_patterns("__pycache__")
    )
    git = [
        "git",
        "-C",
        folder,
        "-c",
        "user.name=test",
        "-c",
        "user.email=test@localhost",
        "-c",
        "commit.gpgsign=false",
    ]
    subprocess.run([*git, "init", "--quiet"], check=True)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "--quiet", "-m", "as it stands"], check=True)
    return f"git+file://{folder}"


def execute(colab, code: str, folder: Path, address: str) -> subprocess.CompletedProcess:
    python, _ = colab
    # without this process's own settings, which may lead to the course
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    environment = {key: value for key, value in os.environ.items() if key not in hidden}
    environment["COURSE_ADDRESS"] = address
    return subprocess.run([python, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)


def state(colab, folder) -> list:
    done = execute(colab, f"PURELIB = {colab[1]!r}{STATE}", folder, "")
    return json.loads(done.stdout)


@pytest.mark.skipif(not shutil.which("git"), reason="pip installs from a repository with git")
def test_a_failing_install_is_told_clearly_and_then_it_works(colab, clone, tmp_path):
    before = state(colab, tmp_path)
    assert "course" not in before[-1]

    done = execute(colab, CELL, tmp_path, "git+file:///no/such/place")
    assert done.returncode == 1
    told = "The course could not be installed. To see why, run: %pip install git+file:///no/such/place"
    assert done.stderr.strip() == told
    assert state(colab, tmp_path) == before

    check = "\nfrom course.train import weights\nprint(course.__file__, *weights.names(), sep='\\n')"
    done = execute(colab, CELL + check, tmp_path, clone)
    assert done.returncode == 0, done.stderr
    place, *shipped = done.stdout.splitlines()
    assert place.startswith(colab[1])
    assert shipped == sorted(path.stem for path in (ROOT / "src/course/weights").glob("*.safetensors"))

    after = state(colab, tmp_path)
    assert after[:-1] == before[:-1], "the installed torch must stay as it is"
    assert set(after[-1]) - set(before[-1]) == {"course"}, "nothing but the course is installed"

    again = execute(colab, CELL, tmp_path, "git+file:///no/such/place")
    assert again.returncode == 0 and not again.stdout + again.stderr, (
        "with the course there, the cell does nothing"
    )
