"""When does an adapter learn its pictures by heart? Adapters of few and of many dotted pictures, looked at on the way.

    python benchmarks/overfitting.py

Fills the stored table "overfitting".  Rows tell the loss, with fixed noises at fixed times, on pictures of the training
("own") and on unseen ones, and how often samples have the style, kind and colour that their captions ask for.
"""

import argparse
import tempfile
from dataclasses import replace

import torch

from course.data.base import DataSet
from course.export.parts import Parts
from course.measure.tables import Table
from course.train.fit import fit
from course.train.recipes import lora

FEW, MANY = 10, 2000  # pictures
LOOKS = (0, 25, 50, 100, 200, 400)  # updates
ROUNDS = 20  # draws of noises and times that the loss is a mean over


@torch.no_grad()
def error(settings: lora.Settings, parts: Parts, pictures: DataSet, count: int) -> float:
    """The recipe's loss on a data set's first pictures, with the same noises and times whenever it is asked."""
    batch = pictures.batch(range(count))
    given = {"z": parts.space.encode(batch["image"]), "cond": parts.embed(batch["caption"])}
    total = 0.0
    for number in range(ROUNDS):
        torch.manual_seed(number)
        total += lora.loss(settings, parts, given).item()
    return total / ROUNDS


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--into", help="folder for the table; by default that of the stored tables")
    parser.add_argument("--smoke", action="store_true", help="a trial of seconds")
    options = parser.parse_args(argv)
    base = lora.Settings(decoder="kl_styles", batch=FEW)
    few, many, looks, samples, base = FEW, MANY, LOOKS, 60, replace(base, steps=LOOKS[-1])
    if options.smoke:
        few, many, looks, samples, base = 2, 4, (0, 2), 2, replace(base, steps=2, batch=2)
    table = Table(
        "overfitting",
        ["pictures", "updates"],
        made_by="python benchmarks/overfitting.py",
        dataset="shapes",
        settings={"style": base.style, "rank": base.rank, "lr": base.lr, "batch": base.batch, "samples": samples},
        into=options.into or (tempfile.mkdtemp() if options.smoke else None),
    )
    test = lora.load(base, "test")
    for pictures in (few, many):
        if table.get(pictures, looks[-1]) is not None:
            continue
        settings = replace(base, count=pictures)
        task, own = lora.build(settings), lora.load(settings)
        (player,) = task.players
        parts = player.loss.args[1]
        progress = fit(task.players, task.batches, settings.steps, precision=settings.precision)
        for updates in range(settings.steps + 1):
            if updates:
                next(progress)
            if updates in looks and table.get(pictures, updates) is None:
                player.module.eval()
                row = {"pictures": pictures, "updates": updates}
                row |= {"own": error(settings, parts, own, min(pictures, samples))}
                row |= {"unseen": error(settings, parts, test, samples)}
                table.store(row | lora.judged(parts, test.batch(range(samples)), seed=settings.seed))
                print(table.get(pictures, updates), flush=True)


if __name__ == "__main__":
    main()
