"""The command line, and a recipe from its first step to the shipped file; mistakes are one line."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from types import ModuleType

import pytest
import torch
from accelerate import PartialState
from torch import nn

import course
from course import UserError
from course.__main__ import main
from course.train import checkpoint, recipes, weights
from course.train.fit import Player
from course.train.settings import Task, check, choice, number, override, restored


@dataclass(frozen=True)
class Settings:
    dataset: str = choice("noise", "noise", "tones")
    widths: tuple[int, ...] = number((4,), 1, 64)
    rate: float | None = number(0.01, 1e-6, 1.0)
    gentle: bool = True
    note: str = ""
    steps: int = number(6, 1, 1000)
    seed: int = number(0, 0, 2**31)
    precision: str = choice("no", "no", "bf16")


def model(settings):
    sizes = (3, *settings.widths, 3)
    return nn.Sequential(*[nn.Linear(a, b) for a, b in zip(sizes, sizes[1:])])


def build(settings, network=None):
    if settings.note == "no files":
        raise UserError("no files of this data set: put them somewhere")
    network = model(settings) if network is None else network

    def batches(start):
        while True:
            if settings.note == f"stop at {start}":
                os.kill(os.getpid(), signal.SIGTERM if settings.gentle else signal.SIGINT)
            draw = torch.Generator().manual_seed(start)
            yield {"x": torch.randn(8, 3, generator=draw)}
            start += 1

    def loss(batch):
        x = batch["x"]
        scale = float("nan") if settings.note == "bad" else 1
        return (network(x + 0.1 * torch.randn_like(x)) - x).pow(2).mean() * scale

    def measure(trained):
        assert not trained.training
        return {"first": trained(torch.ones(1, 3))[0, 0].item(), "second": 2.0}

    return Task([Player("toy", network, loss, lr=settings.rate or 0.1, ema=0.9)], batches, measure)


@pytest.fixture(autouse=True)
def place(monkeypatch, tmp_path):
    """The toy recipe instead of the real ones, an empty folder to work in and an empty shelf of weights."""
    toy = ModuleType("toy")
    toy.Settings, toy.model, toy.build = Settings, model, build
    toy.PROFILES = {"smoke": Settings(), "quick": Settings(widths=(8, 8))}
    real = recipes.get
    monkeypatch.setattr(recipes, "get", lambda name: toy if name == "toy" else real(name))
    (tmp_path / "shelf").mkdir()
    monkeypatch.setattr(weights, "folder", lambda: tmp_path / "shelf")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    PartialState._reset_state()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tree(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def complaint(capsys, *arguments) -> str:
    """Run a command that must fail; returns its one line."""
    assert main(arguments) == 2
    said = capsys.readouterr()
    lines = [line for line in said.err.splitlines() if "it/s]" not in line]  # the progress bar
    assert said.out == "" and len(lines) == 1 and lines[0].startswith("course: "), said
    return lines[0]


# Training


def test_train_measure_ship_load(place, capsys):
    assert (
        main(["train", "toy", "--profile", "smoke", "--set", "widths=5,6", "steps=7", "--set", "seed=3"]) == 0
    )
    said = capsys.readouterr()
    path = place / "runs" / "toy-smoke" / "toy.safetensors"
    assert said.out.startswith("runs/toy-smoke/toy.safetensors: first ") and ", second 2\n" in said.out
    assert "7/7" in said.err
    assert tree(place / "runs") == [
        "toy-smoke",
        "toy-smoke/checkpoint.safetensors",
        "toy-smoke/toy.safetensors",
    ]

    tensors, meta = checkpoint.load(path)
    assert {value.dtype for value in tensors.values()} == {torch.float16}
    assert meta["settings"] == {
        "dataset": "noise", "widths": [5, 6], "rate": 0.01, "gentle": True, "note": "", "steps": 7, "seed": 3,
        "precision": "no",
    }  # fmt: skip
    assert [meta[key] for key in ("name", "recipe", "profile", "dataset", "steps")] == [
        "toy",
        "toy",
        "smoke",
        "noise",
        7,
    ]
    assert meta["parameters"] == 4 * 5 + 6 * 6 + 7 * 3
    assert time.strptime(meta["date"], "%Y-%m-%d") and meta["seconds"] >= 0
    assert "cores" in meta["hardware"] and len(meta["hardware"]) > 10
    assert meta["commit"] == "unknown" or len(meta["commit"].removesuffix("-dirty")) == 12

    # The average is what was saved, and what was measured is what was saved.
    average = checkpoint.load(place / "runs" / "toy-smoke" / "checkpoint.safetensors")[0][
        "toy/average/module.0.weight"
    ]
    assert torch.equal(tensors["0.weight"], average.half())
    loaded = weights.read(path)
    assert loaded(torch.ones(1, 3))[0, 0].item() == pytest.approx(meta["metrics"]["first"], rel=1e-6)

    assert main(["weights", "--ship", str(path)]) == 0
    assert tree(place / "shelf") == ["toy.safetensors"]
    assert weights.names() == ("toy",) and weights.info("toy") == meta
    torch.manual_seed(0)
    before = torch.get_rng_state()
    shipped = weights.load("toy")
    assert torch.equal(before, torch.get_rng_state())  # loading does not use up the caller's random numbers
    assert not shipped.training and shipped[0].weight.dtype == torch.float32
    assert not any(p.requires_grad for p in shipped.parameters())
    assert torch.equal(shipped[0].weight, tensors["0.weight"].float())

    capsys.readouterr()
    assert main(["weights"]) == main(["weights", "toy"]) == main(["list"]) == 0
    said = capsys.readouterr().out
    assert "toy on noise, 77 parameters" in said and "precision" in said and "shapes_video" in said


def test_arguments_from_a_file(place, capsys):
    (place / "my.txt").write_text("# my training\ntoy --profile smoke\n\n--set steps=2   # a trial\nnote='two words'\n")
    assert main(["train", "@my.txt", "--name", "mine"]) == 0
    settings = checkpoint.describe(place / "runs" / "mine-smoke" / "mine.safetensors")["settings"]
    assert (settings["steps"], settings["note"]) == (2, "two words")
    capsys.readouterr()
    assert "none.txt" in complaint(capsys, "train", "@none.txt")


def test_the_revision_is_of_the_code_and_not_of_what_it_made(tmp_path, monkeypatch):
    """In a repository that looks like this one."""
    from course.train import run

    git = lambda *words: subprocess.run(
        ["git", "-c", "user.name=a", "-c", "user.email=a@b", *words], cwd=tmp_path, check=True, capture_output=True
    )
    package = tmp_path / "src" / "course"
    for name in ("train/run.py", "tables/ddim.json", "weights/vae.safetensors"):
        (package / name).parent.mkdir(parents=True)
        (package / name).write_text("1")
    monkeypatch.setattr(run, "__file__", str(package / "train" / "run.py"))
    assert run.commit() == "unknown"
    git("init", "-q")
    assert run.commit() == "unknown"  # the file is not one of this repository's
    git("add", ".")
    git("commit", "-qm", "a")
    clean = run.commit()
    assert len(clean) == 12 and int(clean, 16) >= 0
    (package / "tables" / "ddim.json").unlink()
    (package / "weights" / "vae.safetensors").write_text("2")
    assert run.commit() == clean
    (package / "train" / "run.py").write_text("2")
    assert run.commit() == f"{clean}-dirty"


def test_same_twice(place):
    for out in ("one", "two"):
        torch.manual_seed(len(out) + ord(out[0]))  # of no influence
        assert main(["train", "toy", "--profile", "smoke", "--out", out, "--set", "precision=bf16"]) == 0
    one, two = (checkpoint.load(place / out / "toy-smoke" / "toy.safetensors") for out in ("one", "two"))
    assert (
        all(torch.equal(one[0][key], two[0][key]) for key in one[0])
        and one[1]["metrics"] == two[1]["metrics"]
    )


def test_name(place):
    assert main(["train", "toy", "--profile", "smoke", "--name", "toy_two"]) == 0
    assert checkpoint.describe(place / "runs/toy_two-smoke/toy_two.safetensors")["name"] == "toy_two"


@pytest.mark.parametrize("gentle", ["true", "false"])  # SIGTERM, SIGINT
def test_stopped_and_resumed(place, capsys, gentle):
    ask = ["train", "toy", "--profile", "smoke", "--set", "steps=60", f"gentle={gentle}"]
    stop = ["note=stop at 3"]
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert main([*ask, *stop]) == 130
    assert "stopped; train goes on from its checkpoint with --resume" in capsys.readouterr().err
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    path = place / "runs" / "toy-smoke"
    assert (
        tree(path) == ["checkpoint.safetensors"]
        and checkpoint.describe(path / "checkpoint.safetensors")["step"] == 4
    )
    assert main([*ask, *stop, "--resume"]) == 0
    assert main([*ask, *stop, "--resume"]) == 0  # nothing left to do but to measure
    parts = checkpoint.load(path / "toy.safetensors")
    assert main([*ask, "--out", "straight"]) == 0
    straight = checkpoint.load(place / "straight" / "toy-smoke" / "toy.safetensors")
    assert all(torch.equal(parts[0][key], straight[0][key]) for key in straight[0])
    assert parts[1]["metrics"] == straight[1]["metrics"]


def test_checkpoints_on_the_way(place, capsys):
    line = complaint(capsys, "train", "toy", "--profile", "smoke", "--set", "note=bad")
    assert "the loss of 'toy' is nan at step 0 " in line
    assert tree(place / "runs") == ["toy-smoke"]


# Mistakes


@pytest.mark.parametrize(
    "arguments, expected",
    [
        ("train nosuch", "unknown recipe 'nosuch'; choose one of autoencoder, "),
        ("train toy --profile long", "unknown profile 'long'; toy has: smoke, quick"),
        ("train toy --set width=3", "unknown setting 'width'; this recipe has: dataset, widths, rate, "),
        ("train toy --set steps", "write a setting as key=value, not 'steps'"),
        ("train toy --set dataset=nosuch", "setting dataset must be one of noise, tones, not 'nosuch'"),
        ("train toy --set steps=many", "setting steps must be a whole number from 1 to 1000, not 'many'"),
        ("train toy --set steps=2.5", "setting steps must be a whole number from 1 to 1000, not '2.5'"),
        ("train toy --set steps=none", "setting steps must be a whole number from 1 to 1000, not 'none'"),
        ("train toy --set steps=0", "setting steps must be a whole number from 1 to 1000, not 0"),
        ("train toy --set rate=2", "setting rate must be a number from 1e-06 to 1.0, or none, not 2.0"),
        ("train toy --set rate=nan", "setting rate must be a number from 1e-06 to 1.0, or none, not nan"),
        ("train toy --set gentle=maybe", "setting gentle must be true or false, not 'maybe'"),
        (
            "train toy --set widths=1,x",
            "setting widths must be whole numbers separated by commas, each from 1 to 64",
        ),
        ("train toy --set widths=1,65", "each from 1 to 64, not (1, 65)"),
        ("train toy --set precision=fp16", "setting precision must be one of no, bf16"),
        ("train toy --name ../toy", "a name has letters, digits, - and _ only"),
        ("train toy --resume", "nothing to resume: there is no runs/toy-quick/checkpoint.safetensors"),
        ("train toy --out file", "cannot write into file/toy-quick: "),
        ("train toy --out file/below", "cannot write into file/below/toy-quick: "),
        ("train toy --out /proc/runs", "cannot write into /proc/runs/toy-quick: "),
        ("train toy --set note=no_files", "no files of this data set"),
        ("train", "the following arguments are required: recipe"),
        ("train toy --epochs 3", "unrecognized arguments: --epochs 3"),
        ("paint", "invalid choice: 'paint'"),
        ("", "the following arguments are required: COMMAND"),
        ("weights nosuch", "no shipped weights 'nosuch'; there are: none yet"),
        ("weights --ship nosuch.safetensors", "no such file: nosuch.safetensors"),
        ("weights --ship file", "file is truncated or not a safetensors file"),
        ("weights toy --ship file", "not allowed with argument"),
    ],
)
def test_mistakes(place, capsys, arguments, expected):
    (place / "file").write_text("hello")
    before = tree(place)
    parts = [part.replace("_files", " files") for part in arguments.split()]
    assert expected in complaint(capsys, *parts)
    assert tree(place) == before


def test_resume_with_other_settings(place, capsys):
    ask = ["train", "toy", "--profile", "smoke"]
    assert main(ask) == 0
    path = place / "runs" / "toy-smoke" / "checkpoint.safetensors"
    content = path.read_bytes()
    capsys.readouterr()
    line = complaint(capsys, *ask, "--resume", "--set", "widths=9")
    where = "runs/toy-smoke/checkpoint.safetensors"
    assert line == f"course: cannot resume {where}: it was made with widths=[4], not [9]"
    assert path.read_bytes() == content
    path.write_bytes(content[:1000])
    assert "truncated" in complaint(capsys, *ask, "--resume")


def test_weights_that_do_not_fit(place, capsys):
    assert main(["train", "toy", "--profile", "smoke"]) == 0
    path = place / "runs" / "toy-smoke" / "toy.safetensors"
    tensors, meta = checkpoint.load(path)
    other = place / "other.safetensors"
    fewer = {key: value for key, value in tensors.items() if key != "1.weight"}
    narrow = meta["settings"] | {"widths": [3]}
    capsys.readouterr()
    for made_of, described, expected in (
        (fewer, meta, "it lacks '1.weight'"),
        (tensors | {"2.weight": torch.ones(1)}, meta, "'2.weight' is unknown"),
        (tensors, meta | {"settings": narrow}, "'0.weight' has shape (4, 3), the model has (3, 3)"),
        (tensors, meta | {"settings": {"depth": 1}}, "unknown setting 'depth'"),
        (tensors, meta | {"settings": {"widths": "wide"}}, "setting widths must be"),
        (tensors, meta | {"recipe": "os"}, "unknown recipe 'os'"),
        (tensors, meta | {"name": "../../toy"}, "a name has letters"),
        (tensors, meta | {"settings": 3}, "is no result of `course train`"),
        (tensors, {"kind": "weights"}, "is no result of `course train`"),
    ):
        checkpoint.save(other, made_of, described)
        assert expected in complaint(capsys, "weights", "--ship", str(other))
    assert "file of kind 'checkpoint'" in complaint(
        capsys, "weights", "--ship", "runs/toy-smoke/checkpoint.safetensors"
    )
    assert tree(place / "shelf") == []


def test_shipped_sizes_are_bounded(place, capsys, monkeypatch):
    assert main(["train", "toy", "--profile", "smoke"]) == 0
    path = "runs/toy-smoke/toy.safetensors"
    size = os.path.getsize(path)
    capsys.readouterr()
    monkeypatch.setattr(weights, "FILE_LIMIT", size - 1)
    assert "MB, allowed are" in complaint(capsys, "weights", "--ship", path)
    monkeypatch.setattr(weights, "FILE_LIMIT", size)
    monkeypatch.setattr(weights, "TOTAL_LIMIT", size + 99)
    (place / "shelf" / "toy.safetensors").write_bytes(bytes(1000))  # will be replaced, so it does not count
    weights.ship(path)
    (place / "shelf" / "more.safetensors").write_bytes(bytes(100))
    assert "all shipped weights" in complaint(capsys, "weights", "--ship", path)


# Settings


def test_settings_as_text():
    base = Settings()
    new = override(base, ["widths=(8, 16,)", "rate=none", "gentle=No", "note=a=b", "steps=1000"])
    assert new == replace(base, widths=(8, 16), rate=None, gentle=False, note="a=b", steps=1000)
    assert override(base, []) == base and override(base, ["rate=1"]).rate == 1.0
    assert restored(Settings, {"widths": [1, 2], "rate": None}) == replace(base, widths=(1, 2), rate=None)
    for wrong in (
        {"steps": True},
        {"steps": 2.0},
        {"widths": [4]},
        {"widths": ("4",)},
        {"note": None},
        {"rate": "1"},
    ):
        with pytest.raises(UserError, match=f"setting {next(iter(wrong))} must be"):
            check(replace(base, **wrong))


def test_the_real_recipes():
    for name in recipes.names():
        recipe = recipes.get(name)
        assert {"smoke", "quick", "full"} <= recipe.PROFILES.keys()
        for settings in recipe.PROFILES.values():
            assert isinstance(settings, recipe.Settings)
            assert check(settings).steps > 0 and settings.seed >= 0 and settings.dataset


# The program


def program(*arguments):
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(course.__file__))}
    return subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=60
    )


def test_import_is_fast():
    code = (
        "import sys, time; start = time.perf_counter(); import course; print(time.perf_counter() - start); "
    )
    done = program(
        "-c", code + "print([name for name in ('torch', 'numpy', 'accelerate') if name in sys.modules])"
    )
    seconds, heavy = done.stdout.split("\n")[:2]
    assert float(seconds) < 1.5 and heavy == "[]"


def test_a_mistake_outside_python(place):
    done = program("-m", "course", "train", "nosuch", "--out", str(place / "runs"))
    assert done.returncode == 2 and done.stdout == "" and not (place / "runs").exists()
    assert done.stderr.startswith("course: unknown recipe 'nosuch'") and done.stderr.count("\n") == 1


def test_a_finished_training_goes_on_for_more_steps_but_not_for_fewer(place, capsys):
    ask = ["train", "toy", "--profile", "smoke", "--set"]
    assert main([*ask, "steps=6"]) == 0
    assert main([*ask, "steps=9", "--resume"]) == 0
    assert checkpoint.describe(place / "runs" / "toy-smoke" / "toy.safetensors")["steps"] == 9
    capsys.readouterr()
    assert "beyond the 7 steps asked for" in complaint(capsys, *ask, "steps=7", "--resume")
