"""What every data set offers (DataSet), how training walks through it (batches), and the hash under both."""

import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch

from course import UserError

GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mix(words: np.ndarray) -> np.ndarray:
    """Scramble uint64 words; a bijection (the finaliser of Steele, Lea, Flood 2014, "SplitMix64").

    Integer arithmetic modulo 2**64 only, so the result is the same on every machine.
    """
    words = np.asarray(words, np.uint64)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


class DataSet:
    """A finite, ordered collection of items that are made or read when asked for.

    name, split: as given to `course.data.load`. channels: 1 (grey) or 3 (colour). size: (H, W) in pixels.
    classes: names of the classes that "label" counts, or None where there are no labels. len(): number of
    items. Subclasses define `batch`. Item i is the same on every call, in every process and in every batch.
    """

    def __init__(
        self,
        name: str,
        split: str,
        *,
        channels: int,
        size: tuple[int, int],
        count: int,
        classes: Sequence[str] | None = None,
    ) -> None:
        self.name = name
        self.split = split
        self.channels = channels
        self.size = size
        self.classes = None if classes is None else tuple(classes)
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __repr__(self) -> str:
        height, width = self.size
        return f"{self.name} ({self.split}): {self.count} items, {self.channels} x {height} x {width}"

    def batch(self, indices: Iterable[int]) -> dict:
        """Items by number, as a dict of tensors with the batch first.

        "image": (B, C, H, W) float32 in [-1, 1] (a video set has "video" (B, T, C, H, W) instead); "label":
        (B,) int64 where the set has classes; some sets add more. Raises UserError for a number outside 0..len
        - 1.
        """
        raise NotImplementedError

    def numbers(self, indices: Iterable[int]) -> np.ndarray:
        """Check item numbers (any sequence, array, tensor or range of integers) -> (B,) int64 array."""
        if isinstance(indices, torch.Tensor):
            indices = indices.cpu().numpy()
        elif not isinstance(indices, np.ndarray):
            indices = list(indices) if isinstance(indices, Iterable) else indices
        array = np.asarray(indices)
        if array.size == 0:
            array = array.reshape(0).astype(np.int64)
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise UserError(f"{self.name}: item numbers must be a list of integers, got {_short(indices)}")
        wrong = array[(array < 0) | (array >= self.count)]
        if len(wrong):
            raise UserError(
                f"{self.name} ({self.split}) has the items 0 to {self.count - 1}: no item {int(wrong[0])}"
            )
        return array.astype(np.int64)


def batches(
    dataset: DataSet, batch_size: int, *, seed: int = 0, start: int = 0, keys: Sequence[str] | None = None
) -> Iterator[dict]:
    """Shuffled batches without end; batch i depends only on (dataset, batch_size, seed, i).

    Each epoch visits the items in a new order, drawn from (seed, epoch); what does not fill a batch at the
    end of an epoch is left out. start: number of the first batch, so a resumed run goes on where it stopped.
    keys: the entries of the batch that are wanted (all by default). Raises UserError when batch_size is below
    1 or above len(dataset), start is below 0 or a key is unknown.
    """
    count = len(dataset)
    if not _whole(batch_size) or not 1 <= batch_size <= count:
        raise UserError(f"batch_size must be 1 to {count} (the items of {dataset.name}), got {batch_size!r}")
    _check_start(start)
    if not _whole(seed):
        raise UserError(f"seed must be a whole number, got {seed!r}")
    if keys is not None:
        known = tuple(dataset.batch([0]))
        for key in keys:
            if key not in known:
                raise UserError(f"{dataset.name} has no {key!r}; a batch holds: {', '.join(known)}")
    # the checks above run at the call; a generator's body would only run at the first next()
    return _walk(dataset, int(batch_size), int(seed), int(start), keys)


def in_turn(
    datasets: Sequence[DataSet], batch_size: int, *, seed: int = 0, start: int = 0, keys: Sequence[str] | None = None
) -> Iterator[dict]:
    """Batches from several data sets, one set after the other, without end: pictures of several sizes in one training.

    Arguments and errors as for `batches`, and no data set at all; batch i is again the same whatever ``start`` is.
    """
    count = len(datasets)
    if not count:
        raise UserError("in_turn needs at least one data set")
    _check_start(start)
    walks = [
        # how many of the batches before number `start` were this set's: those with number turn, turn + count, ...
        batches(one, batch_size, seed=seed + turn, start=-((turn - start) // count), keys=keys)
        for turn, one in enumerate(datasets)
    ]
    return (next(walks[number % count]) for number in itertools.count(start))


def order(count: int, seed: int, epoch: int) -> np.ndarray:
    """The permutation of 0..count - 1 that an epoch follows: sorted by a hash of (seed, epoch, item)."""
    # arrays of one element, not scalars: NumPy warns when a scalar wraps around, and wrapping is wanted here
    key = mix(np.array([seed % 2**64], np.uint64) + GOLDEN)
    key = mix(key + GOLDEN * np.array([epoch + 1], np.uint64))
    return np.argsort(mix(key + GOLDEN * np.arange(count, dtype=np.uint64)), kind="stable")


def _check_start(start: int) -> None:
    if not _whole(start) or start < 0:
        raise UserError(f"start must be a whole number, 0 or more, got {start!r}")


def _walk(dataset: DataSet, size: int, seed: int, start: int, keys: Sequence[str] | None) -> Iterator[dict]:
    per_epoch = len(dataset) // size
    epoch, place = divmod(start, per_epoch)
    while True:
        items = order(len(dataset), seed, epoch)
        for first in range(place * size, per_epoch * size, size):
            batch = dataset.batch(items[first : first + size])
            yield batch if keys is None else {key: batch[key] for key in keys}
        epoch, place = epoch + 1, 0


def check_split(name: str, split: str, allowed: Sequence[str] = ("train", "test")) -> str:
    """Return split, or raise UserError with the splits that data set `name` has."""
    if split not in allowed:
        raise UserError(f"{name} has no split {split!r}; choose one of {', '.join(allowed)}")
    return split


def check_size(name: str, size: int | Sequence[int], low: int, high: int) -> tuple[int, int]:
    """int or (H, W) -> (H, W), each from low to high pixels; anything else raises UserError."""
    pair = (size, size) if _whole(size) else size
    if isinstance(pair, (tuple, list)) and len(pair) == 2:
        if all(_whole(n) and low <= n <= high for n in pair):
            return int(pair[0]), int(pair[1])
    raise UserError(f"{name}: size must be {low} to {high}, one number or a pair (H, W), got {_short(size)}")


def check_count(name: str, count: int | None, default: int, most: int | None = None) -> int:
    """Number of items: default when None; 1 or more, at most `most` where a set is finite; else UserError."""
    if count is None:
        return default
    if not _whole(count) or count < 1 or (most is not None and count > most):
        limit = "1 or more" if most is None else f"1 to {most}"
        raise UserError(f"{name}: count must be a whole number, {limit}, got {_short(count)}")
    return int(count)


def check_seed(name: str, seed: int) -> int:
    """Return the seed as an int, or raise UserError when it is not a whole number, 0 or more."""
    if not _whole(seed) or seed < 0:
        raise UserError(f"{name}: seed must be a whole number, 0 or more, got {_short(seed)}")
    return int(seed)


def _whole(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _short(value: object) -> str:
    text = " ".join(repr(value).split())  # one line, whatever the value
    return text if len(text) <= 60 else text[:57] + "..."
