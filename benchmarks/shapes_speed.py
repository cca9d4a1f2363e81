"""How fast the shapes world is drawn on one core: python benchmarks/shapes_speed.py

Compares batches of 512 with scenes drawn one at a time, in the same run, so that the ratio means something on
any machine. Seconds are processor time, which other programs disturb little. Exit status 1 if stills at
32 x 32 fall short of 5,000 a second.
"""

import os

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = "1"  # before NumPy and torch are loaded: afterwards it has no effect

import sys  # noqa: E402
import time  # noqa: E402

from course.data.base import DataSet  # noqa: E402
from course.data.shapes import Shapes  # noqa: E402
from course.data.shapes_video import ShapesVideo  # noqa: E402

BATCH = 512
WANTED = 5000
REPEATS = 7  # the best one counts: whatever else the machine does can only make it slower


def rate(data: DataSet, batch: int, items: int) -> float:
    """Items a second, drawn `batch` at a time; the best of REPEATS."""
    best = float("inf")
    for repeat in range(REPEATS):
        first = repeat * items
        start = time.process_time()
        for at in range(first, first + items, batch):
            data.batch(range(at, at + batch))
        best = min(best, time.process_time() - start)
    return items / best


def main() -> int:
    print(f"{'one core':32}{f'batch {BATCH}':>12}{'one by one':>12}{'ratio':>8}   items a second")
    stills = None
    for label, data, batch in (
        ("stills 32 x 32", Shapes(), BATCH),
        ("stills 32 x 32, 1 to 3 shapes", Shapes(shapes=(1, 2, 3)), BATCH),
        ("stills 64 x 64", Shapes(size=64), BATCH),
        ("clips 16 x 32 x 32", ShapesVideo(), BATCH // 16),
    ):
        together, alone = rate(data, batch, batch), rate(data, 1, 64)
        stills = stills or together
        print(f"{label:32}{together:12,.0f}{alone:12,.0f}{together / alone:8.1f}")
    verdict = "ok" if stills >= WANTED else "TOO SLOW"
    verdict = "ok" if stills >= WANTED else "TOO SLOW"
    print(f"stills at 32 x 32: {stills:,.0f} a second, wanted {WANTED:,}: {verdict}")
    return 0 if stills >= WANTED else 1


if __name__ == "__main__":
    sys.exit(main())
