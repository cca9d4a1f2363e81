"""Folders of pictures with captions: what is written comes back, and a wrong line is named by its number."""

from __future__ import annotations

import json

import pytest
import torch

from course import UserError, data
from course.data import captioned


@pytest.fixture
def folder(tmp_path):
    batch = data.load("shapes", size=16).batch(range(5))
    return captioned.write(tmp_path / "set", batch["image"], batch["caption"]), batch


def test_what_was_written_comes_back(folder):
    root, batch = folder
    found = data.load("captioned", root=root, size=16)
    assert len(found) == 5 and found.channels == 3
    again = found.batch([3, 0])
    assert again["caption"] == [batch["caption"][3], batch["caption"][0]]
    torch.testing.assert_close(again["image"], batch["image"][[3, 0]])  # the drawn levels are whole numbers already


def test_each_line_names_a_picture_and_its_text(folder):
    root, batch = folder
    lines = [json.loads(line) for line in (root / "metadata.jsonl").read_text().splitlines()]
    assert [line["text"] for line in lines] == batch["caption"]
    assert all((root / line["file_name"]).is_file() for line in lines)


def test_pictures_are_cut_to_the_size_that_is_asked_for(folder):
    assert data.load("captioned", root=folder[0], size=(8, 12)).batch([0])["image"].shape == (1, 3, 8, 12)
    assert len(data.load("captioned", root=folder[0], count=2)) == 2


@pytest.mark.parametrize(
    "line, message",
    [
        ('{"file_name": "00001.png", "text": "red', "line 3 is not JSON"),
        ('{"file_name": "00001.png"}', "line 3 needs.*text is missing"),
        ('{"text": "red circle"}', "line 3 needs.*file_name is missing"),
        ('{"file_name": "00001.png", "text": "  "}', "line 3 needs.*text is missing"),
        ('["00001.png", "red circle"]', "line 3 needs"),
        ('{"file_name": "other.png", "text": "red circle"}', "line 3 names the picture 'other.png', which is not in"),
    ],
)
def test_a_broken_line_is_named_by_its_number(folder, line, message):
    path = folder[0] / "metadata.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], line, *lines[3:]]))
    with pytest.raises(UserError, match=message) as caught:
        data.load("captioned", root=folder[0])
    assert "\n" not in str(caught.value)


def test_folders_without_anything_to_learn_from(tmp_path, folder):
    (tmp_path / "empty").mkdir()
    (tmp_path / "blank").mkdir()
    (tmp_path / "blank" / "metadata.jsonl").write_text("\n\n")
    for root, message in (
        (tmp_path / "none", "is not a folder"),
        (tmp_path / "empty", "has no readable metadata.jsonl"),
        (tmp_path / "blank", "is empty"),
        (None, "say which folder"),
    ):
        with pytest.raises(UserError, match=message):
            captioned.Captioned(root=root)
    with pytest.raises(UserError, match="is not empty"):
        captioned.write(folder[0], folder[1]["image"], folder[1]["caption"])
    with pytest.raises(UserError, match="5 pictures need 5 captions, not 4"):
        captioned.write(tmp_path / "new", folder[1]["image"], folder[1]["caption"][:4])
    assert not (tmp_path / "new").exists()
    with pytest.raises(UserError, match="no split 'test'"):
        captioned.Captioned("test", root=folder[0])
