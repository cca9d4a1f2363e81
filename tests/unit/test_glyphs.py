"""The drawn digits: readable, balanced, the same everywhere."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from course import data
from course.data import glyphs

PRINT_HASH = """
import hashlib
from course import data
print(hashlib.sha256(data.load("glyphs", "test", seed=3).batch(range(100, 160))["image"].numpy()).hexdigest())
"""


def test_same_bytes_in_another_process():
    images = data.load("glyphs", "test", seed=3).batch(range(100, 160))["image"].numpy()
    there = subprocess.run([sys.executable, "-c", PRINT_HASH], check=True, capture_output=True, text=True)
    assert there.stdout.strip() == hashlib.sha256(images).hexdigest()


def test_same_bytes_in_any_batch():
    dataset = data.load("glyphs")
    together = dataset.batch(range(1000, 1129))["image"]
    for size in (1, 7, 64):
        for first in range(0, 129, size):
            items = range(1000 + first, 1000 + min(first + size, 129))
            assert torch.equal(dataset.batch(items)["image"], together[first : first + size])
    backwards = dataset.batch(range(1128, 999, -1))["image"]
    assert torch.equal(backwards.flip(0), together)


def test_256_levels_white_on_black():
    images = data.load("glyphs").batch(range(500))["image"]
    levels = (images + 1) * 127.5
    assert (levels - levels.round()).abs().max() < 1e-4
    assert images.min() == -1 and images.max() == 1
    assert (images.amax((1, 2, 3)) > 0.6).all()
    shares = (images > 0).float().mean((1, 2, 3))
    assert 0.04 < shares.min() and shares.max() < 0.4 and 0.13 < shares.mean() < 0.2


def test_digits_are_whole_and_of_mnist_size():
    images = data.load("glyphs").batch(range(2000))["image"][:, 0]
    border = torch.cat([images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1]], 1)
    assert (border > 0).any(1).float().mean() < 0.005
    tall = (images > 0).any(2).sum(1).float()
    wide = (images > 0).any(1).sum(1).float()
    assert 18 < tall.mean() < 21 and tall.min() > 14
    assert 9 < wide.mean() < 16 and wide.min() > 2
    rows = (images > 0).any(2).float()
    middle = (rows * torch.arange(28)).sum(1) / rows.sum(1)
    assert abs(middle.mean() - 13.5) < 0.3 and 0.3 < middle.std() < 1.5


def test_labels_are_balanced():
    for split, count in (("train", 20_000), ("test", 4_000)):
        dataset = data.load("glyphs", split)
        assert len(dataset) == count
        labels = dataset.parameters(range(count))[0]
        assert np.bincount(labels).tolist() == [count // 10] * 10


def test_train_and_test_share_no_parameters():
    rows = []
    for seed in (0, 1):
        for split in ("train", "test"):
            dataset = data.load("glyphs", split, seed=seed)
            rows.append(dataset.parameters(range(len(dataset)))[1])
    rows = np.concatenate(rows)
    assert len(np.unique(rows, axis=0)) == len(rows)
    # and no two rows agree even in font, rotation and stretch alone
    assert len(np.unique(rows[:, :4], axis=0)) == len(rows)


def test_parameters_are_uniform_and_independent():
    u = data.load("glyphs", seed=11).parameters(range(20_000))[1]
    assert u.min() >= 0 and u.max() < 1
    assert abs(u.mean(0) - 0.5).max() < 0.01 and abs(u.std(0) - 12**-0.5).max() < 0.005
    correlation = np.corrcoef(u.T) - np.eye(u.shape[1])
    assert abs(correlation).max() < 0.035
    assert abs(np.corrcoef(u[:-1].T, u[1:].T)[: u.shape[1], u.shape[1] :]).max() < 0.035


def test_only_bundled_fonts():
    from pathlib import Path

    import matplotlib

    for name in glyphs.FONTS:
        assert (Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf").is_file()


def test_fields_are_distances():
    fields, half, choices = glyphs.fields()
    assert sorted(np.concatenate(choices).tolist()) == list(range(len(fields)))
    assert len(choices[0]) == len(glyphs.FONTS) - 2 and all(
        len(each) == len(glyphs.FONTS) for each in choices[1:]
    )
    # a distance changes at most as fast as one moves
    step = glyphs.EXTENT / glyphs.CELLS
    assert abs(np.diff(fields, axis=1)).max() <= step * 1.01
    assert abs(np.diff(fields, axis=2)).max() <= step * 1.01
    border = np.concatenate([fields[:, 0], fields[:, -1], fields[:, :, 0], fields[:, :, -1]], 1)
    assert border.max() < -0.15  # room for the widest stroke
    inside = (fields > 0).any(2)
    tall = inside.sum(1) * step
    assert abs(tall - 1).max() <= step
    assert ((0.02 < half) & (half < 0.1)).all()


def test_stroke_widens():
    labels = np.full(8, 8)
    u = np.full((8, glyphs.DRAWS), 0.5)
    u[:, 7] = np.linspace(0, 0.999, 8)
    ink = glyphs._draw(labels, u, 28, 28).mean((1, 2))
    assert (np.diff(ink) > 0).all() and ink[-1] > 1.3 * ink[0]


@pytest.mark.parametrize("column, least", [(1, 8), (2, 2), (3, 2), (5, 2), (6, 2)])
def test_each_deformation_shows(column, least):
    u = np.full((2, glyphs.DRAWS), 0.5)
    u[:, column] = 0, 0.999
    low, high = glyphs._draw(np.array([4, 4]), u, 28, 28)
    assert abs(high - low).sum() > least


def test_rotation_stays_within_15_degrees():
    # the ink's main axis of an upright 1 turns with the digit
    def angle(turn):
        u = np.full((1, glyphs.DRAWS), 0.5)
        u[0, 0], u[0, 1] = 0.01, turn  # DejaVu Sans
        ink = glyphs._draw(np.array([1]), u, 64, 64)[0]
        ys, xs = np.mgrid[:64, :64]
        ys, xs = ys - (ink * ys).sum() / ink.sum(), xs - (ink * xs).sum() / ink.sum()
        return 0.5 * np.degrees(np.arctan2(2 * (ink * xs * ys).sum(), (ink * (xs**2 - ys**2)).sum())) % 180

    assert 27 < abs(angle(0.0) - angle(0.9999)) < 31


def test_a_small_picture_is_the_large_one_seen_from_afar():
    large = data.load("glyphs", size=64).batch(range(40))["image"]
    small = data.load("glyphs", size=16).batch(range(40))["image"]
    afar = nn.functional.interpolate(large, (16, 16), mode="area")
    assert (afar - small).abs().mean() < 0.06
    both = torch.stack([afar.flatten(), small.flatten()])
    assert torch.corrcoef(both)[0, 1] > 0.98


def test_a_small_network_reads_them():
    """99 % after four seconds, so 1 and 7, 6 and 9, and 0 are told apart in every font."""
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(1, 16, 5, 2, 2), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU()),
        *(nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(64 * 16, 10)),
    )
    steps = 450
    optimizer = torch.optim.AdamW(net.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, steps)
    for _, batch in zip(range(steps), data.batches(data.load("glyphs"), 100)):
        loss = nn.functional.cross_entropy(net(batch["image"]), batch["label"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    batch = data.load("glyphs", "test", count=2000).batch(range(2000))
    right = (net(batch["image"]).argmax(1) == batch["label"]).float()
    assert right.mean() >= 0.99
    for digit in range(10):
        assert right[batch["label"] == digit].mean() >= 0.97
