"""The shapes world: the same bytes everywhere, exact balance, clean drawing, captions that tell the truth."""

import hashlib
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from course import UserError
from course.data import load
from course.data.captions import (
    COLOURS,
    GROUNDS,
    KINDS,
    MOTIONS,
    PLACES,
    SIZES,
    STYLES,
    VOCABULARY,
    caption,
    motion_name,
    words,
)
from course.data.counter import permute
from course.data.drawing import REACHES, RGB, SHADES, TURN
from course.data.shapes import HELD_OUT, MIDDLES, RADII, Shapes
from course.data.shapes_video import ShapesVideo

STILLS_HASH = "b12c9a0bd4321ca8a4bd430cf68ddc61"
VIDEO_HASH = "c55be1ad66ba0baa2acd551476f36c61"


def fingerprint(*tensors: torch.Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]


def reference() -> tuple[str, str]:
    stills = Shapes("test", size=(32, 48), shapes=(1, 2, 3), styles=STYLES, detail="detailed").batch(
        range(96)
    )
    clips = ShapesVideo("test", size=32, frames=5, styles=STYLES).batch(range(34))
    return fingerprint(stills["image"], stills["mask"]), fingerprint(clips["video"], clips["mask"])


# --- the same bytes


def test_reference_batches_have_the_pinned_bytes():
    # Changing how anything is drawn changes every shipped model's data: do it on purpose, then pin the new
    # values.
    assert reference() == (STILLS_HASH, VIDEO_HASH)


def test_another_process_draws_the_same_bytes():
    source = Path(__file__).parents[2] / "src"
    code = "import sys; sys.path.insert(0, sys.argv[1]); import test_shapes as t; print(t.reference())"
    environment = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "2", "PYTHONHASHSEED": "7"}
    # and as on an older processor: without the wide instructions, under their old and their new names
    environment["NPY_DISABLE_CPU_FEATURES"] = "AVX2 FMA3 AVX512F AVX512_SKX X86_V3 X86_V4"
    found = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parent)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == str(reference())


@pytest.mark.parametrize(
    "data", [Shapes(shapes=(1, 2, 3), size=(24, 40)), ShapesVideo(frames=3)], ids=["stills", "video"]
)
def test_an_item_does_not_depend_on_its_batch(data):
    key = "image" if "image" in data.batch([0]) else "video"
    order = [5, 999_999, 17, 3, 3, 260]
    together = data.batch(order)
    for place, index in enumerate(order):
        alone = data.batch(torch.tensor([index]))
        assert torch.equal(alone[key][0], together[key][place])
        assert torch.equal(alone["mask"][0], together["mask"][place])
        assert alone["caption"][0] == together["caption"][place]
        for name, value in alone["factors"].items():
            assert torch.equal(value[0], together["factors"][name][place]), name


def test_large_batches_are_drawn_in_pieces_without_a_seam():
    data = ShapesVideo(size=128, frames=4)  # 16 clips to a piece
    whole, part = data.batch(range(20)), data.batch(range(13, 20))
    assert torch.equal(whole["video"][13:], part["video"]) and torch.equal(whole["mask"][13:], part["mask"])


@pytest.mark.parametrize("name", ["shapes", "shapes_video"])
def test_streams_are_disjoint(name):
    seen = set()
    for split, seed in [("train", 0), ("test", 0), ("composition", 0), ("train", 1), ("train", 2**64 - 1)]:
        batch = load(name, split, seed=seed, size=16).batch(range(200))
        seen |= {image.numpy().tobytes() for image in batch.get("image", batch.get("video"))}
    assert len(seen) == 1000


def test_empty_and_repeated_batches():
    assert Shapes().batch([])["image"].shape == (0, 3, 32, 32)
    assert ShapesVideo().batch([])["video"].shape == (0, 16, 3, 32, 32)


# --- what a batch holds


def test_stills_batch():
    data = load("shapes", "test", size=(16, 128), count=50, shapes=(1, 3))
    assert (data.name, data.split, data.channels, data.size, len(data)) == (
        "shapes",
        "test",
        3,
        (16, 128),
        50,
    )
    assert data.classes == KINDS
    batch = data.batch(range(10))
    assert batch["image"].shape == (10, 3, 16, 128) and batch["image"].dtype == torch.float32
    assert -1 <= batch["image"].min() and batch["image"].max() <= 1
    grey = (batch["image"].double() + 1) * 127.5
    assert (grey - grey.round()).abs().max() < 1e-4  # 256 levels
    assert batch["mask"].shape == (10, 16, 128) and batch["mask"].dtype == torch.int64
    assert torch.equal(batch["label"], batch["factors"]["kind"][:, 0])
    present = (batch["factors"]["kind"] >= 0).sum(1)
    assert sorted(present.tolist()) == [1] * 5 + [3] * 5
    for name, value in batch["factors"].items():
        if name in ("ground", "shade"):
            assert value.shape == (10,) and value.dtype == torch.int64
        else:
            assert value.shape == (10, 3)
            assert value.dtype == (torch.float32 if name in ("x", "y", "radius") else torch.int64)
            assert torch.equal(value == -1, batch["factors"]["kind"] == -1), name


def test_video_batch():
    data = load("shapes_video", "test", size=(32, 24), frames=7, count=40, detail="detailed")
    assert (data.name, data.channels, data.size, len(data)) == ("shapes_video", 3, (32, 24), 40)
    assert data.classes == tuple(motion_name(motion) for motion in range(17))
    batch = data.batch(range(20))
    assert batch["video"].shape == (20, 7, 3, 32, 24) and batch["mask"].shape == (20, 7, 32, 24)
    assert torch.equal(batch["label"], batch["motion"])
    assert batch["factors"]["kind"].shape == (20, 3) and (batch["factors"]["kind"][:, 1:] == -1).all()


# --- balance


@pytest.mark.parametrize("n", [1, 2, 3, 17, 64, 1000])
def test_permute_is_one_to_one(n):
    cards = permute(np.arange(n), n, np.full(n, 12345, np.uint64))
    assert sorted(cards.tolist()) == list(range(n))
    if n == 1000:
        assert (cards != permute(np.arange(n), n, np.full(n, 54321, np.uint64))).mean() > 0.9


@pytest.mark.parametrize("cycle", [0, 3])
def test_every_combination_comes_once_a_cycle(cycle):
    data = Shapes(styles=("filled", "hatched"))
    total = 42 * 3 * 9 * 2 * 4 * 3
    found = data.factors(np.arange(cycle * total, (cycle + 1) * total))
    names = ("kind", "colour", "size", "place", "style")
    rows = np.stack([found[name][:, 0] for name in names] + [found["ground"], found["shade"]], axis=1)
    assert len(np.unique(rows, axis=0)) == total
    assert np.unique(found["style"][:, 0]).tolist() == [0, 3]


def test_only_the_chosen_sizes_come_each_equally_often():
    one = Shapes(sizes="large").factors(np.arange(100))
    assert np.unique(one["size"][:, 0]).tolist() == [2]
    two = Shapes(sizes=("small", "large"), shapes=(1, 2)).factors(np.arange(2 * 42 * 2 * 9 * 4 * 4 * 3))
    number = (two["kind"] >= 0).sum(1)
    single = two["size"][number == 1, 0]
    assert np.bincount(single).tolist() == [len(single) // 2, 0, len(single) // 2]
    assert np.unique(two["size"][number == 2, :2]).tolist() == [0]  # several shapes are never large
    with pytest.raises(UserError, match="add one to sizes"):
        Shapes(sizes="large", shapes=2)
    with pytest.raises(UserError, match="small, medium, large"):
        Shapes(sizes="huge")


def test_crowded_scenes_are_balanced_too():
    data = Shapes(shapes=(1, 2, 3))
    total = 3 * 42 * 2 * 4  # each slot's pack, and every third scene has two shapes
    found = data.factors(np.arange(total))
    number = (found["kind"] >= 0).sum(1)
    assert np.bincount(number).tolist() == [0, total // 3, total // 3, total // 3]
    for slot in range(2):
        rows = found["kind"][number == 2, slot] * 8 + found["colour"][number == 2, slot]
        assert np.unique(np.unique(rows, return_counts=True)[1]).tolist() == [8]


def test_motions_are_balanced():
    found = ShapesVideo().scenes(np.arange(170))[0]
    assert np.bincount(found, minlength=17).tolist() == [10] * 17


def test_held_out_pairs_appear_only_in_composition():
    assert (
        len(HELD_OUT) == 6 == len({kind for _, kind in HELD_OUT}) == len({colour for colour, _ in HELD_OUT})
    )
    held_out = {(COLOURS.index(colour), KINDS.index(kind)) for colour, kind in HELD_OUT}
    for split in ("train", "test", "composition"):
        for number in (1, (2, 3)):
            found = Shapes(split, shapes=number).factors(range(3000))
            there = found["kind"] >= 0
            shown = set(zip(found["colour"][there].tolist(), found["kind"][there].tolist(), strict=True))
            assert shown == held_out if split == "composition" else not shown & held_out and len(shown) == 42
        _, found, _ = ShapesVideo(split).scenes(range(3000))
        shown = set(zip(found["colour"][:, 0].tolist(), found["kind"][:, 0].tolist(), strict=True))
        assert shown == held_out if split == "composition" else not shown & held_out and len(shown) == 42


# --- drawing, against a drawing made in another way: polygons in float64, 8 x 8 points in each pixel

FINE = 8


def polygon(kind: str) -> np.ndarray:
    """Corners of a kind of radius 1, y downwards."""

    def around(radii: list[float], n: int) -> np.ndarray:
        turns = [2 * math.pi * i / n for i in range(n)]
        return np.array(
            [
                (radii[i % len(radii)] * math.sin(t), -radii[i % len(radii)] * math.cos(t))
                for i, t in enumerate(turns)
            ]
        )

    if kind == "circle":
        return around([1.0], 90)
    if kind == "square":
        return 0.82 * np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)])
    if kind == "triangle":
        return around([1.25], 3)
    if kind == "star":
        return around([1.25, 0.625], 10)
    if kind == "cross":
        corners = [
            np.array([(-0.42, -1.13), (0.42, -1.13), (0.42, -0.42)])
        ]  # and three times a quarter turn on
        for _ in range(3):
            corners.append(np.stack([-corners[-1][:, 1], corners[-1][:, 0]], axis=1))
        return np.concatenate(corners)
    # a heart: the tip, then the right half circle, then the left one
    h, turns = 0.95, np.linspace(0, math.pi, 40)
    right = [
        (0.5 + math.sqrt(0.5) * math.cos(t - math.pi / 4), 1.5 + math.sqrt(0.5) * math.sin(t - math.pi / 4))
        for t in turns
    ]
    left = [(-x, y) for x, y in reversed(right)]
    return h * np.array([(0.0, 0.0), *right, *left]) * (1, -1) + (0, 1.25 * h)


def inside(points: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Even-odd rule: how often a ray to the right crosses the outline."""
    x, y = points[..., 0], points[..., 1]
    odd = np.zeros(x.shape, bool)
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        if y0 != y1:
            odd ^= ((y0 > y) != (y1 > y)) & (x < x0 + (y - y0) * (x1 - x0) / (y1 - y0))
    return odd


def brute_force(
    kind: int, x: float, y: float, radius: float, angle: int, size: int, hole: float = 0.0, fine: int = FINE
) -> np.ndarray:
    """Coverage of each pixel; lengths in pixels. hole: factor by which a hole of the same form is smaller."""
    turn = 2 * math.pi * angle / TURN
    rotate = np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
    corners = radius * polygon(KINDS[kind])
    middle = (np.arange(size * fine) + 0.5) / fine
    points = np.stack(np.meshgrid(middle - x, middle - y), axis=-1)
    filled = inside(points, corners @ rotate)
    if hole:
        filled &= ~inside(points, hole * corners @ rotate)
    return filled.reshape(size, fine, size, fine).mean((1, 3))


def coverage(batch: dict, i: int) -> np.ndarray:
    """Coverage back from the pixels of a plain scene with one shape of one tone."""
    shade = torch.tensor(SHADES[batch["factors"]["shade"][i]])[:, None, None]
    ink = torch.tensor(RGB[COLOURS[batch["factors"]["colour"][i, 0]]])[:, None, None]
    image = (batch["image"][i] + 1) * 127.5
    channel = (ink - shade).abs().flatten().argmax()  # the one that tells most
    return ((image - shade) / (ink - shade))[channel].numpy()


def drawn(batch: dict, i: int, size: int) -> tuple[int, float, float, float, int]:
    found = {name: batch["factors"][name][i, 0].item() for name in ("kind", "x", "y", "radius", "angle")}
    return found["kind"], found["x"] * size, found["y"] * size, found["radius"] * size, found["angle"]


def test_edges_equal_a_supersampled_drawing():
    size = 32
    batch = Shapes("test", size=size, styles="filled", grounds="plain").batch(range(48))
    assert batch["label"].unique().tolist() == list(range(6))
    worst = []
    for i in range(48):
        truth, found = brute_force(*drawn(batch, i, size), size), coverage(batch, i)
        difference = np.abs(found - truth)
        edge = (truth > 0) & (truth < 1)
        # The ramp along the distance is exact for upright edges, off by up to 0.06 for slanting ones, and by
        # up to 0.4 in the one pixel that holds a sharp tip (of which a star has five). On average that is
        # little.
        assert difference[edge].mean() < 0.08, KINDS[batch["label"][i]]
        assert difference.mean() < 0.004
        assert difference[truth == 1].max() < 0.3 and difference[truth == 0].max() < 0.3
        assert abs(found.sum() / truth.sum() - 1) < 0.025  # no bias in area
        # the mask is the silhouette: the pixels whose middle lies inside, but for one that rounding may
        # decide
        mask = batch["mask"][i].numpy()
        assert set(np.unique(mask)) == {0, 1 + batch["label"][i].item()}
        middles = brute_force(*drawn(batch, i, size), size, fine=1)
        assert ((mask > 0) != (middles > 0)).sum() <= 1
        worst.append(difference[edge].mean())
    assert np.mean(worst) < 0.035


def test_outlines_have_the_same_width_everywhere():
    size = 48
    batch = Shapes("test", size=size, styles="outline", grounds="plain").batch(range(24))
    inradius = {"circle": 1.0, "square": 0.82, "triangle": 0.625, "star": 0.4425673 * 1.25}
    for i in range(24):
        kind, x, y, radius, angle = drawn(batch, i, size)
        assert (batch["mask"][i] > 0).sum() > 0.9 * coverage(batch, i).clip(0, 1).sum()
        if KINDS[kind] in inradius:  # a hole of the same form, the line's width further in
            hole = 1 - 0.043 * size / (inradius[KINDS[kind]] * radius)
            truth = brute_force(kind, x, y, radius, angle, size, hole)
            assert np.abs(coverage(batch, i) - truth).mean() < 0.004


def test_a_large_canvas_shows_the_same_scene():
    options = {"shapes": (1, 2, 3), "styles": STYLES}
    small, large = (Shapes(size=size, **options).batch(range(64)) for size in (32, 64))
    assert small["caption"] == large["caption"]
    shrunk = torch.nn.functional.avg_pool2d(large["image"], 2)
    assert (shrunk - small["image"]).abs().mean() < 0.02  # of 2: patterns are no finer, flecks no more


def test_every_style_and_ground_looks_different():
    images = {}
    for style in STYLES:
        for ground in GROUNDS:
            images[style, ground] = Shapes(styles=style, grounds=ground, count=60).batch(range(60))["image"]
    for style in STYLES:  # the ground's texture, seen in the corners that single shapes leave free
        spread = [images[style, ground][:, 0, :3].std(dim=(1, 2)).mean().item() for ground in GROUNDS]
        assert spread[0] < 0.03 < 0.04 < min(spread[1:]) and max(spread[1:]) < 0.2
    for a in range(6):
        for b in range(a):
            assert (images[STYLES[a], "plain"] - images[STYLES[b], "plain"]).abs().mean() > 0.01


@pytest.mark.parametrize("size", [16, 33, (16, 128), (128, 16), (40, 64)])
def test_shapes_stay_inside_and_in_their_places(size):
    data = Shapes(size=size, shapes=(1, 2, 3), grounds="plain")
    height, width = data.size
    batch = data.batch(range(300))
    found = {name: value.numpy() for name, value in batch["factors"].items()}
    mask = batch["mask"]
    assert not any(edge.any() for edge in (mask[:, 0], mask[:, -1], mask[:, :, 0], mask[:, :, -1]))
    there = found["kind"] >= 0
    column, row = found["place"] % 3, found["place"] // 3
    for centre, cell in ((found["x"], column), (found["y"], row)):
        nearest = np.abs(centre[..., None] - np.array(MIDDLES)).argmin(-1)
        assert (nearest == cell)[there].all()
    assert np.abs(found["radius"][there] / np.array(RADII)[found["size"][there]] - 1).max() < 0.041
    # several shapes: reading order, small or medium, no neighbours, bounding circles apart
    unit = min(height, width)
    for i in np.flatnonzero(there.sum(1) > 1):
        k = there[i].sum()
        assert (np.diff(found["place"][i, :k]) > 0).all() and found["size"][i, :k].max() <= 1
        for a in range(k):
            for b in range(a):
                assert max(abs(column[i, a] - column[i, b]), abs(row[i, a] - row[i, b])) == 2
                apart = math.hypot(
                    (found["x"][i, a] - found["x"][i, b]) * width,
                    (found["y"][i, a] - found["y"][i, b]) * height,
                )
                reach = REACHES[found["kind"][i, :k]] * found["radius"][i, :k] * unit
                assert apart >= reach[a] + reach[b]
        seen = set(batch["mask"][i].unique().tolist()) - {0}
        assert seen == {1 + kind for kind in found["kind"][i, :k].tolist()}


def test_mask_holds_every_shape_of_a_crowded_scene():
    size = 48
    batch = Shapes("test", size=size, shapes=3, styles="filled").batch(range(12))
    found = batch["factors"]
    for i in range(12):
        for slot in range(3):
            kind = found["kind"][i, slot].item()
            place = [found[name][i, slot].item() * size for name in ("x", "y", "radius")]
            truth = brute_force(kind, *place, found["angle"][i, slot].item(), size)
            assert (batch["mask"][i].numpy()[truth > 0.65] == 1 + kind).all()


# --- captions


def test_captions_say_what_is_there():
    one = {"kind": [0, -1, -1], "colour": [0, -1, -1], "size": [2, -1, -1], "place": [0, -1, -1]}
    one |= {"style": [3, -1, -1], "ground": 3}
    assert caption(one) == "large red circle top left"
    assert (
        caption(one, "detailed")
        == "a large red circle with a hatched fill at the top left, on a speckled ground"
    )
    right = MOTIONS.index(("bounce", "right"))
    assert caption(one, motion=right) == "a large red circle bounces to the right"
    assert (
        caption(one, "detailed", right)
        == "a large red circle with a hatched fill at the top left bounces to the right, on a speckled ground"
    )
    two = {
        "kind": [3, 5, -1],
        "colour": [5, 7, -1],
        "size": [0, 1, -1],
        "place": [4, 8, -1],
        "style": [1, 0, -1],
    }
    two |= {"ground": 0}
    assert caption(two) == "small blue star center and medium pink heart bottom right"
    assert (
        caption(two, "detailed") == "a small blue star with only an outline in the center and "
        "a medium pink heart with a solid fill at the bottom right, on a plain ground"
    )


def test_a_detail_that_does_not_exist_is_refused():
    """The terse caption was given for it."""
    one = {name: [0] for name in ("kind", "colour", "size", "place", "style")} | {"ground": 0}
    with pytest.raises(UserError, match="detail must be one of terse, detailed, got 'long'$"):
        caption(one, "long")


def test_captions_of_batches_follow_the_factors():
    batch = Shapes("test", shapes=(1, 2, 3)).batch(range(60))
    for i, text in enumerate(batch["caption"]):
        parts = text.split(" and ")
        assert len(parts) == (batch["factors"]["kind"][i] >= 0).sum()
        for slot, part in enumerate(parts):
            size, colour, kind, place = part.split(" ", 3)
            found = [
                (SIZES.index(size), "size"),
                (COLOURS.index(colour), "colour"),
                (KINDS.index(kind), "kind"),
            ]
            for value, name in (*found, (PLACES.index(place), "place")):
                assert batch["factors"][name][i, slot] == value
    clips = ShapesVideo().batch(range(17))
    sentences = {
        motion: text for motion, text in zip(clips["motion"].tolist(), clips["caption"], strict=True)
    }
    assert len(sentences) == 17
    for motion, end in (
        (("orbit", "clockwise"), " orbits clockwise"),
        (("drift", "up"), " drifts up"),
        (("occlude", "left"), " passes behind a post to the left"),
    ):
        assert sentences[MOTIONS.index(motion)].endswith(end)


def test_vocabulary_is_exactly_what_captions_use():
    used = set()
    for detail in ("terse", "detailed"):
        options = {"detail": detail, "styles": STYLES}
        texts = Shapes(shapes=(1, 2, 3), size=16, **options).batch(range(600))["caption"]
        texts += ShapesVideo(size=16, frames=1, **options).batch(range(600))["caption"]
        used |= {word for text in texts for word in words(text)}
    assert used == set(VOCABULARY) and len(set(VOCABULARY)) == len(VOCABULARY)
    assert all(word == "," or (word.isalpha() and word.islower()) for word in VOCABULARY)


# --- motions, judged by masks and pixels


def clips_of(verb: str, direction: str, size: int | tuple[int, int] = 48, frames: int = 16):
    """A motion's first clips: batch, masks (B, T, H, W), centroids (B, T, 2), areas (B, T), (W, H)."""
    data = ShapesVideo("test", size=size, frames=frames)
    wanted = np.flatnonzero(data.scenes(range(17 * 12))[0] == MOTIONS.index((verb, direction)))
    batch = data.batch(wanted)
    mask = batch["mask"].numpy() > 0
    area = mask.sum((2, 3)).astype(float)
    height, width = data.size
    with np.errstate(invalid="ignore"):
        x = (mask * (np.arange(width) + 0.5)).sum((2, 3)) / area
        y = (mask * (np.arange(height) + 0.5)[:, None]).sum((2, 3)) / area
    return batch, mask, np.stack([x, y], -1), area, (width, height)


AXES = {"left": (0, -1), "right": (0, 1), "up": (1, -1), "down": (1, 1)}


@pytest.mark.parametrize("size", [48, (32, 64), (64, 32)])
@pytest.mark.parametrize("direction", AXES)
def test_drift_goes_where_it_says(direction, size):
    _, _, centre, area, extent = clips_of("drift", direction, size)
    axis, sign = AXES[direction]
    steps = sign * np.diff(centre[..., axis], axis=1)
    assert (steps > 0).all()
    assert (sign * (centre[:, -1, axis] - centre[:, 0, axis]) > 0.28 * extent[axis]).all()
    assert np.ptp(centre[..., 1 - axis], axis=1).max() < 0.6  # pixels
    assert (np.ptp(area, axis=1) / area.mean(1)).max() < 0.15


@pytest.mark.parametrize("size", [48, (32, 64), (64, 32)])
@pytest.mark.parametrize("direction", AXES)
def test_bounce_turns_round_at_the_wall(direction, size):
    _, mask, centre, _, extent = clips_of("bounce", direction, size)
    axis, sign = AXES[direction]
    along = sign * centre[..., axis]
    turn = along.argmax(1)
    assert ((turn >= 6) & (turn <= 11)).all()
    for i, frame in enumerate(turn):
        assert (np.diff(along[i, : frame + 1]) > 0).all() and (np.diff(along[i, frame + 1 :]) < 0).all()
        assert along[i, frame] - along[i, 0] > 0.28 * extent[axis]
        assert along[i, frame] - along[i, -1] > 0.15 * extent[axis]
        where = np.flatnonzero(mask[i, frame].any(axis))  # columns for x, rows for y
        gap = extent[axis] - 1 - where.max() if sign > 0 else where.min()
        # a step away from the turning point at most, and a bounding circle is wider than a figure
        assert gap <= 0.17 * min(extent) + 1
    assert np.ptp(centre[..., 1 - axis], axis=1).max() < 0.6


@pytest.mark.parametrize("size", [48, (32, 64), (64, 32)])
@pytest.mark.parametrize("direction", ["clockwise", "counterclockwise"])
def test_orbit_goes_round_in_its_direction(direction, size):
    _, _, centre, _, extent = clips_of("orbit", direction, size)
    away = centre / extent - 0.5
    angle = np.unwrap(np.arctan2(away[..., 1], away[..., 0]), axis=1)  # y points down: clockwise is positive
    sign = 1 if direction == "clockwise" else -1
    assert (sign * np.diff(angle, axis=1) > 0).all()
    assert np.abs(sign * np.degrees(angle[:, -1] - angle[:, 0]) - 270).max() < 25
    assert np.hypot(away[..., 0], away[..., 1]).min() > 0.1


@pytest.mark.parametrize("verb, ratio", [("grow", 2.25), ("shrink", 1 / 2.25)])
def test_grow_and_shrink_change_the_area(verb, ratio):
    _, _, centre, area, _ = clips_of(verb, "", 64)
    assert (np.sign(ratio - 1) * np.diff(area[:, ::3], axis=1) > 0).all()
    assert np.abs(area[:, -1] / area[:, 0] / ratio - 1).max() < 0.12
    assert np.ptp(centre, axis=1).max() < 1.0


@pytest.mark.parametrize("direction", ["clockwise", "counterclockwise"])
def test_rotate_turns_in_its_direction(direction):
    batch, mask, centre, area, (size, _) = clips_of("rotate", direction, 64)
    assert not (batch["label"] == KINDS.index("circle")).any()
    assert KINDS.index("circle") not in batch["factors"]["kind"]
    assert np.ptp(centre, axis=1).max() < 1.5 and (np.ptp(area, axis=1) / area.mean(1)).max() < 0.1
    sign = 1 if direction == "clockwise" else -1
    grid = np.arange(size) + 0.5
    for i in range(len(mask)):
        x, y = (batch["factors"][name][i, 0].item() * size for name in ("x", "y"))
        fits = {}
        for turn in (20, -20):  # degrees clockwise: frame 3 of 15 stands at 100 * 3 / 15
            c, s = math.cos(math.radians(turn)), math.sin(math.radians(turn))
            u, v = np.meshgrid(grid - x, grid - y)
            column, row = np.floor(x + c * u + s * v).astype(int), np.floor(y - s * u + c * v).astype(int)
            turned = mask[i, 0][row.clip(0, size - 1), column.clip(0, size - 1)]
            fits[turn] = (turned == mask[i, 3]).mean()
        assert fits[sign * 20] > 0.985 and fits[sign * 20] > fits[-sign * 20]
        assert (mask[i, 0] != mask[i, -1]).any()


@pytest.mark.parametrize("size", [32, (32, 64), (64, 32)])
@pytest.mark.parametrize("direction", ["left", "right"])
def test_occlude_vanishes_behind_the_post_and_returns(direction, size):
    batch, mask, centre, area, (width, _) = clips_of("occlude", direction, size)
    sign = 1 if direction == "right" else -1
    assert (area[:, 7:9] == 0).all()
    assert (sign * (centre[:, 0, 0] - width / 2) < 0).all() and (
        sign * (centre[:, -1, 0] - width / 2) > 0
    ).all()
    full = np.array(RADII)[0] ** 2 * 2 * min(batch["video"].shape[-2:]) ** 2  # no kind is smaller than 2 r^2
    assert (area[:, 0] > 0.7 * full).all() and (area[:, -1] > 0.7 * full).all()
    middle = batch["video"][..., width // 2]  # the post stands still, neutral and dark, from top to bottom
    assert (middle == middle[:, :1, :, :1]).all() and middle.max() < -0.2


def test_still_stays():
    batch, mask, *_ = clips_of("still", "")
    assert (batch["video"] == batch["video"][:, :1]).all() and mask.any()


def test_clips_of_any_length_show_the_whole_motion():
    short, long = (ShapesVideo(frames=frames).batch(range(34)) for frames in (4, 64))
    assert torch.equal(short["video"][:, 0], long["video"][:, 0])
    assert torch.equal(short["video"][:, -1], long["video"][:, -1])
    assert short["caption"] == long["caption"]
    single = ShapesVideo(frames=1).batch(range(34))
    assert torch.equal(single["video"][:, 0], long["video"][:, 0])


@pytest.mark.parametrize("size", [32, (24, 64), (64, 24)])
def test_moving_shapes_stay_inside_and_begin_where_the_factors_say(size):
    data = ShapesVideo(size=size)
    batch = data.batch(range(170))
    mask = batch["mask"]
    assert not any(edge.any() for edge in (mask[..., 0, :], mask[..., -1, :], mask[..., 0], mask[..., -1]))
    found = {name: value[:, 0].numpy() for name, value in batch["factors"].items() if value.ndim == 2}
    for centre, cell in ((found["x"], found["place"] % 3), (found["y"], found["place"] // 3)):
        assert (np.abs(centre[:, None] - np.array(MIDDLES)).argmin(1) == cell).all()
    height, width = data.size
    mask = batch["mask"][:, 0].numpy() > 0
    occluded = [MOTIONS[motion][0] == "occlude" for motion in batch["motion"].tolist()]
    for i in np.flatnonzero(~np.array(occluded)):
        rows, columns = np.nonzero(mask[i])
        # a heart's middle is not its centre of mass, hence a tenth of the radius
        slack = 0.12 * found["radius"][i] * min(data.size) + 0.3
        assert abs(columns.mean() + 0.5 - found["x"][i] * width) < slack
        assert abs(rows.mean() + 0.5 - found["y"][i] * height) < slack


# --- mistakes


@pytest.mark.parametrize("name", ["shapes", "shapes_video"])
@pytest.mark.parametrize(
    "options, part",
    [
        ({"split": "validation"}, "train, test, composition"),
        ({"size": 8}, "16 to 128"),
        ({"size": (32, 129)}, "16 to 128"),
        ({"size": (32, 32, 3)}, "16 to 128"),
        ({"size": 32.0}, "16 to 128"),
        ({"count": 0}, "1 or more"),
        ({"seed": -1}, "0 or more"),
        ({"styles": ("filled", "wavy")}, "filled, outline"),
        ({"styles": ()}, "filled, outline"),
        ({"styles": ("filled", "filled")}, "filled, outline"),
        ({"styles": 3}, "filled, outline"),
        ({"grounds": "lawn"}, "plain, stripes"),
        ({"grounds": [["plain"]]}, "plain, stripes"),
        ({"detail": "long"}, "terse, detailed"),
    ],
)
def test_bad_options_are_told_in_one_line(name, options, part):
    with pytest.raises(UserError) as caught:
        load(name, **options)
    assert part in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("shapes", [0, 4, (), (1, 5), 1.0, True, "two", None])
def test_bad_number_of_shapes(shapes):
    with pytest.raises(UserError, match="one or several of 1, 2, 3"):
        Shapes(shapes=shapes)


@pytest.mark.parametrize("frames", [0, -1, 65, 2.0, True, None, "16"])
def test_bad_number_of_frames(frames):
    with pytest.raises(UserError, match="from 1 to 64"):
        ShapesVideo(frames=frames)


def test_items_that_do_not_exist():
    for data in (Shapes(count=10), ShapesVideo(count=10)):
        for indices in ([10], [-1], [0.5]):
            with pytest.raises(UserError):
                data.batch(indices)
