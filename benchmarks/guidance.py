"""The dial of guidance: how well samples obey their captions, and how good and varied they are as a set.

    python benchmarks/guidance.py

Fills the stored table "guidance" from the shipped `ldm`: captions of the test set in few words and in many, of pairs of
colour and kind that training never showed, and of two shapes, each at several scales.
"""

import argparse
import tempfile

from course import data, measure
from course.measure.tables import Table
from course.train import weights
from course.train.recipes import ldm

SCALES = (1.0, 2.0, 3.0, 5.0, 7.5, 10.0)
CAPTIONS = {  # the split, and what differs from its default scenes
    "terse": ("test", {}),
    "detailed": ("test", {"detail": "detailed"}),
    "composition": ("composition", {}),
    "two": ("test", {"shapes": (2,)}),
}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--into", help="folder for the table; by default that of the stored tables")
    parser.add_argument("--smoke", action="store_true", help="a trial of seconds")
    options = parser.parse_args(argv)
    count, scales, steps = (8, (1.0, 3.0), 2) if options.smoke else (500, SCALES, 20)
    settings, model = weights.settings("ldm"), weights.load("ldm")
    table = Table(
        "guidance",
        ["captions", "scale"],
        made_by="python benchmarks/guidance.py",
        dataset="shapes",
        settings={"weights": "ldm", "samples": count, "steps": steps},
        into=options.into or (tempfile.mkdtemp() if options.smoke else None),
    )
    for name, (split, scenes) in CAPTIONS.items():
        pictures = data.load("shapes", split, size=settings.size, seed=settings.seed, **scenes)
        batch = pictures.batch(range(count))
        pool = data.load("shapes", split, size=settings.size, seed=settings.seed + 1, **scenes)
        least = measure.floor(batch["image"], pool, "shapes")
        for scale in scales:
            if table.get(name, scale) is not None:
                continue
            made = ldm.draw(settings, model, batch["caption"], scale=scale, steps=steps, seed=settings.seed)
            precision, recall = measure.precision_recall(batch["image"], made, "shapes")
            row = {"captions": name, "scale": scale, **ldm.obeyed(made, batch["factors"])}
            row |= {"frechet": measure.frechet(batch["image"], made, "shapes"), "frechet_floor": least}
            table.store(row | {"precision": precision, "recall": recall})
            print(table.get(name, scale), flush=True)


if __name__ == "__main__":
    main()
