"""DataSet, batches and load: what every data set promises, tried on the quick ones."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from course import UserError, data
from course.data import base


class Numbers(data.DataSet):
    """Item i is the number i."""

    def __init__(self, count: int) -> None:
        super().__init__("numbers", "train", channels=1, size=(1, 1), count=count)

    def batch(self, indices):
        items = torch.from_numpy(self.numbers(indices))
        return {"image": items.float()[:, None, None, None], "item": items}


def take(iterator, number):
    return [next(iterator)["item"].tolist() for _ in range(number)]


def test_hash_is_splitmix64():
    # the first outputs of Vigna's public-domain splitmix64.c for the state 1234567
    states = np.array([1234567], np.uint64) + base.GOLDEN * np.arange(1, 4, dtype=np.uint64)
    assert base.mix(states).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_an_epoch_visits_every_item_once():
    batches = take(data.batches(Numbers(12), 4), 9)
    epochs = [sum(batches[i : i + 3], []) for i in (0, 3, 6)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_a_partial_batch_is_dropped():
    batches = take(data.batches(Numbers(11), 4), 6)
    assert all(len(batch) == 4 for batch in batches)
    for first in (0, 2, 4):
        assert len(set(batches[first] + batches[first + 1])) == 8


def test_every_item_comes_at_every_place_equally_often():
    # 4,000 epochs of 8 items: each of the 64 (place, item) cells expects 500, with a deviation of 21
    table = np.zeros((8, 8), int)
    for epoch in range(4000):
        table[np.arange(8), base.order(8, 3, epoch)] += 1
    assert abs(table - 500).max() < 105


@pytest.mark.parametrize("start", [0, 1, 2, 3, 5, 17])
def test_resume(start):
    whole = take(data.batches(Numbers(11), 4, seed=5), start + 4)
    assert take(data.batches(Numbers(11), 4, seed=5, start=start), 4) == whole[start:]


def test_seed_changes_the_order():
    assert take(data.batches(Numbers(50), 10, seed=1), 5) != take(data.batches(Numbers(50), 10, seed=2), 5)
    assert take(data.batches(Numbers(9), 9, seed=-1), 2) == take(data.batches(Numbers(9), 9, seed=-1), 2)


def test_order_is_the_same_on_every_machine():
    # integers only, so the bytes may be pinned
    assert base.order(10, 0, 0).tolist() == [1, 8, 9, 3, 6, 5, 0, 7, 4, 2]
    assert base.order(10, 2**63, 5).tolist() == [2, 9, 6, 0, 3, 5, 8, 1, 4, 7]


def test_keys():
    assert set(next(data.batches(Numbers(4), 2))) == {"image", "item"}
    assert set(next(data.batches(Numbers(4), 2, keys=["image"]))) == {"image"}


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"batch_size": 0}, "batch_size must be 1 to 10"),
        ({"batch_size": 11}, "batch_size must be 1 to 10"),
        ({"batch_size": 2.0}, "batch_size must be 1 to 10"),
        ({"batch_size": True}, "batch_size must be 1 to 10"),
        ({"batch_size": 2, "start": -1}, "start must be"),
        ({"batch_size": 2, "start": 1.5}, "start must be"),
        ({"batch_size": 2, "seed": "x"}, "seed must be"),
        ({"batch_size": 2, "keys": ["label"]}, "numbers has no 'label'; a batch holds: image, item"),
    ],
)
def test_bad_batches(arguments, words):
    with pytest.raises(UserError) as caught:  # at the call, not at the first batch
        data.batches(Numbers(10), **arguments)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("indices", [[3], (3,), range(3, 4), np.array([3], np.uint8), torch.tensor([3])])
def test_item_numbers_of_any_kind(indices):
    assert Numbers(4).batch(indices)["item"].tolist() == [3]


@pytest.mark.parametrize("indices", [[4], [-1], [0.5], [[0]], 3, ["0"], [True]])
def test_bad_item_numbers(indices):
    with pytest.raises(UserError):
        Numbers(4).batch(indices)


def test_no_items_is_an_empty_batch():
    for dataset in (data.load("glyphs"), data.load("digits"), data.load("digits", size=12)):
        batch = dataset.batch([])
        assert batch["image"].shape == (0, 1, *dataset.size) and batch["label"].shape == (0,)


@pytest.mark.parametrize("name", ["glyphs", "digits"])
@pytest.mark.parametrize("size", [None, 16, (12, 20)])
def test_contract(name, size):
    for split in ("train", "test"):
        dataset = data.load(name, split, size=size)
        batch = dataset.batch(range(0, len(dataset), 97))
        image, label = batch["image"], batch["label"]
        assert image.dtype == torch.float32 and label.dtype == torch.int64
        assert image.shape[1:] == (dataset.channels, *dataset.size)
        assert image.min() >= -1 and image.max() <= 1 and image.max() > 0.9 and image.is_contiguous()
        assert (dataset.name, dataset.split, dataset.classes) == (name, split, tuple("0123456789"))
        assert str(len(dataset)) in repr(dataset)
        # in any company
        item = 97 * 3
        for company in ([item], [0, item], list(range(50)) + [item]):
            alone = dataset.batch(company)
            assert torch.equal(alone["image"][-1], image[3]) and alone["label"][-1] == label[3]


def test_first_items_do_not_depend_on_count():
    for name in ("glyphs", "digits"):
        few, many = data.load(name, count=7), data.load(name)
        assert len(few) == 7
        assert torch.equal(few.batch(range(7))["image"], many.batch(range(7))["image"])


def test_real_sets_take_any_seed():
    assert torch.equal(
        data.load("digits", seed=1).batch([0])["image"], data.load("digits", seed=2).batch([0])["image"]
    )


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("glyph",), "unknown data set 'glyph'; choose one of shapes, shapes_video, glyphs, digits, mnist"),
        ((["glyphs"],), "unknown data set"),
        (("glyphs", "valid"), "glyphs has no split 'valid'; choose one of train, test"),
        (("digits", "valid"), "digits has no split 'valid'; choose one of train, test"),
        (("mnist", "valid"), "mnist has no split 'valid'"),
        (("glyphs", "train", {"size": 7}), "size must be 8 to 64"),
        (("glyphs", "train", {"size": 65}), "size must be 8 to 64"),
        (("glyphs", "train", {"size": (28, 28, 1)}), "size must be"),
        (("glyphs", "train", {"size": 28.0}), "size must be"),
        (("glyphs", "train", {"size": "28"}), "size must be"),
        (("digits", "train", {"size": 4}), "size must be 8 to 1024"),
        (("glyphs", "train", {"count": 0}), "count must be a whole number, 1 or more"),
        (("digits", "train", {"count": 10_000}), "count must be a whole number, 1 to 14"),
        (("glyphs", "train", {"seed": -1}), "seed must be a whole number, 0 or more"),
        (("glyphs", "train", {"seed": 0.5}), "seed must be"),
        (("glyphs", "train", {"root": "somewhere"}), "glyphs reads no files"),
        (("glyphs", "train", {"style": "bold"}), "glyphs has no option 'style'; it has none of its own"),
        (
            ("folder", "train", {"style": "bold"}),
            "folder has no option 'style'; its own options are channels",
        ),
    ],
)
def test_bad_arguments(arguments, words):
    *places, last = arguments
    named = last if isinstance(last, dict) else {}
    places = places if named else arguments
    with pytest.raises(UserError) as caught:
        data.load(*places, **named)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_nothing_is_imported_early():
    code = (
        "import sys, course.data;"
        "early = {'torch', 'sklearn', 'torchvision', 'matplotlib', 'PIL'} & set(sys.modules);"
        "assert not early, early; course.data.load('glyphs', count=1).batch([0]);"
        "late = {'sklearn', 'torchvision', 'matplotlib.pyplot'} & set(sys.modules); assert not late, late"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_sets_take_turns_and_a_resumed_walk_goes_on_where_it_stopped():
    sets = [data.load("glyphs", count=count, size=size) for count, size in ((50, 8), (70, 12), (30, 16))]

    def walk(start, number):
        walking = data.in_turn(sets, 8, seed=3, start=start)
        return [next(walking) for _ in range(number)]

    straight = walk(0, 20)
    assert [batch["image"].shape[2] for batch in straight[:6]] == [8, 12, 16, 8, 12, 16]
    for start in range(8):
        for one, other in zip(straight[start:], walk(start, 12)):
            assert torch.equal(one["image"], other["image"])
    alone = data.batches(sets[1], 8, seed=3 + 1)
    assert all(torch.equal(next(alone)["image"], batch["image"]) for batch in straight[1::3])


def test_wrong_turns_are_refused_at_the_call():
    sets = [data.load("glyphs", count=20, size=8)] * 2
    for start in (-1, -5, 1.5):
        with pytest.raises(UserError, match=f"start must be a whole number, 0 or more, got {start}$"):
            data.in_turn(sets, 4, start=start)
    with pytest.raises(UserError, match="at least one data set"):
        data.in_turn([], 4)
