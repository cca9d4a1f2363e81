"""What f does when the map of codes stays as large as a transformer can read: VQ-VAEs with 16x16 codes.

    python benchmarks/code_grid.py

Fills the stored table "code_grid": with f = 2, 4 and 8 the same 256 codes stand for pictures of 32, 64 and 128 pixels.
Each model sees equally many pixels: the larger the pictures, the fewer there are in a batch.
"""

import argparse
import tempfile
from dataclasses import replace

import torch

from course.measure.tables import Table
from course.train.fit import fit
from course.train.recipes import vqvae

GRID = 16  # codes on each side
COLUMNS = ("psnr", "frechet_reconstruction", "frechet_floor", "sharpness", "perplexity", "used")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--into", help="folder for the table; by default that of the stored tables")
    parser.add_argument("--smoke", action="store_true", help="a trial of seconds")
    options = parser.parse_args(argv)
    base, samples = vqvae.Settings(dataset="shapes", entries=256, steps=400, ema=0.99), 500
    if options.smoke:
        base, samples = replace(base, width=8, steps=2, entries=16), 8
    table = Table(
        "code_grid",
        ["f"],
        made_by="python benchmarks/code_grid.py",
        dataset="shapes",
        settings={"recipe": "vqvae", "grid": GRID, "entries": base.entries, "steps": base.steps, "samples": samples},
        into=options.into or (tempfile.mkdtemp() if options.smoke else None),
    )
    for halvings in (1, 2, 3):
        f = 2**halvings
        if table.get(f) is not None:
            continue
        settings = replace(base, halvings=halvings, size=GRID * f, batch=2 if options.smoke else 2048 // f**2)
        torch.manual_seed(settings.seed)
        model = vqvae.model(settings)
        task = vqvae.build(settings, model)
        for update in fit(task.players, task.batches, settings.steps, precision=settings.precision):
            if update.step % 100 == 0:
                print(f"  f={f}: {update.step} of {update.steps} updates, {update.seconds:.0f} s", flush=True)
        metrics = vqvae.metrics(settings, task.players[0].trained.cpu().eval(), samples)
        row = {"f": f, "size": settings.size, "batch": settings.batch, "steps": settings.steps}
        table.store(row | {"seconds": round(update.seconds, 1)} | {key: metrics[key] for key in COLUMNS})
        print(table.get(f), flush=True)


if __name__ == "__main__":
    main()
