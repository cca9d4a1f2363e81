"""Files of tensors: whole or not at all, and nothing in them is ever executed."""

import multiprocessing
import os
import pickle
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from course import UserError
from course.train import checkpoint


def one_line(error) -> str:
    text = str(error.value)
    assert "\n" not in text and 10 < len(text) < 300
    return text


def test_round_trip(tmp_path):
    shared = torch.randn(4, 3)
    tensors = {
        "float": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "half": torch.randn(7).half(),
        "brain": torch.randn(7).bfloat16(),
        "double": torch.rand(3, dtype=torch.float64),
        "whole": torch.arange(5),
        "truth": torch.tensor([True, False]),
        "scalar": torch.tensor(3.0),
        "empty": torch.zeros(0, 2),
        "tied one": shared,
        "tied two": shared,
        "transposed": shared.T,
        "parameter": nn.Parameter(torch.ones(2)),
    }
    meta = {"step": 3, "nested": {"list": [1, 2]}, "text": "é 世界"}
    checkpoint.save(tmp_path / "a.safetensors", tensors, meta)
    loaded, described = checkpoint.load(tmp_path / "a.safetensors")
    assert described == meta == checkpoint.describe(tmp_path / "a.safetensors")
    assert loaded.keys() == tensors.keys()
    for key, value in tensors.items():
        assert loaded[key].dtype == value.dtype and torch.equal(loaded[key], value), key
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_loaded_tensors_outlive_the_file(tmp_path):
    path = tmp_path / "a.safetensors"
    checkpoint.save(path, {"x": torch.ones(1000)}, {})
    loaded, _ = checkpoint.load(path)
    checkpoint.save(path, {"x": torch.zeros(1000)}, {})
    path.write_bytes(b"")
    assert loaded["x"].sum() == 1000


def test_truncated_anywhere(tmp_path):
    path = tmp_path / "a.safetensors"
    checkpoint.save(path, {"x": torch.randn(50), "y": torch.randn(3)}, {"step": 1})
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(UserError) as error:
            checkpoint.load(path)
        assert "truncated or not a safetensors file" in one_line(error)


class Trap:
    """Unpickling this makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_foreign_files(tmp_path):
    path, sprung = tmp_path / "a.safetensors", tmp_path / "sprung"
    for content in (b"hello", b"\x89PNG\r\n\x1a\n" + bytes(100), bytes(8), pickle.dumps({"x": Trap(sprung)})):
        path.write_bytes(content)
        with pytest.raises(UserError) as error:
            checkpoint.load(path)
        assert str(path) in one_line(error)
    torch.save({"x": Trap(sprung)}, path)
    with pytest.raises(UserError):
        checkpoint.load(path)
    assert not sprung.exists()

    for metadata in (None, {"format": "pt"}, {"course": "{"}, {"course": "[1]"}):
        save_file({"x": torch.ones(2)}, path, metadata)
        with pytest.raises(UserError, match="not written by this course"):
            checkpoint.describe(path)
    for missing in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(UserError, match="no such file"):
            checkpoint.load(missing)


def test_unwritable(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in ("missing", "file"):
        with pytest.raises(UserError, match="cannot write") as error:
            checkpoint.save(tmp_path / folder / "a.safetensors", {"x": torch.ones(1)}, {})
        one_line(error)
    assert os.listdir(tmp_path) == ["file"]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    checkpoint.save(path, {"x": torch.ones(1)}, {"version": 1})

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device"):
        checkpoint.save(path, {"x": torch.ones(1)}, {"version": 2})
    assert checkpoint.describe(path) == {"version": 1}
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_old_leftovers_are_cleared(tmp_path):
    old, fresh = tmp_path / ".a.safetensors.1.partial", tmp_path / ".a.safetensors.2.partial"
    old.touch(), fresh.touch()
    os.utime(old, (0, 0))
    checkpoint.save(tmp_path / "a.safetensors", {}, {})
    assert not old.exists() and fresh.exists()  # the fresh one may belong to a process that is writing now


def test_restore_names_the_first_offending_key():
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    good = {key: value.clone() for key, value in model.state_dict().items()}
    before = {key: value.clone() for key, value in good.items()}
    changed = {key: value + 1 for key, value in good.items()}
    lacking = {key: value for key, value in changed.items() if key != "0.bias" and not key.startswith("1")}
    for tensors, expected in (
        (lacking, "x.safetensors does not fit the model: it lacks '0.bias'"),
        (changed | {"0.weight": torch.ones(2, 3)}, "'0.weight' has shape (2, 3), the model has (3, 2)"),
        (changed | {"more": torch.ones(1)}, "'more' is unknown to it"),
    ):
        with pytest.raises(UserError) as error:
            checkpoint.restore(model, tensors, "x.safetensors")
        assert expected in one_line(error)
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    checkpoint.restore(model, {key: value.half() for key, value in good.items()}, "x")
    assert model[0].weight.dtype == torch.float32


def save_for_ever(path: Path) -> None:
    torch.set_num_threads(1)  # a forked process has lost its parent's pool of threads
    version = 0
    while True:
        version += 1
        tensors = {key: torch.full((200_000,), float(version)) for key in "abc"}
        checkpoint.save(path, tensors, {"version": version})


def test_killed_while_saving(tmp_path):
    path = tmp_path / "a.safetensors"
    moment = random.Random(0)
    in_the_middle = 0
    for _ in range(10):
        before = checkpoint.describe(path)["version"] if path.exists() else 0
        worker = multiprocessing.get_context("fork").Process(target=save_for_ever, args=(path,))
        worker.start()
        while not path.exists():
            time.sleep(0.001)
        time.sleep(moment.uniform(0.05, 0.15))
        os.kill(worker.pid, signal.SIGKILL)
        worker.join()
        assert worker.exitcode == -signal.SIGKILL
        tensors, meta = checkpoint.load(path)
        assert meta["version"] >= 1 and all((tensors[key] == meta["version"]).all() for key in "abc"), before
        in_the_middle += (tmp_path / f".a.safetensors.{worker.pid}.partial").exists()
    print(f"killed 10 times, {in_the_middle} times in the middle of a write; 10 of 10 files load")
    assert in_the_middle > 0  # else the kills came at moments that prove nothing
