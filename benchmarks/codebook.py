"""What the size of a codebook buys, and what keeps its entries alive: VQ-VAEs of equal short training.

    python benchmarks/codebook.py

Fills the stored table "codebook", row by row; rows that are there already are left alone.  Each row is one training of
the recipe "vqvae" in its quick profile with fewer updates: first codebooks of 8 to 512 entries, then the one of 128
entries with each way of learning it, with and without restarts of dead entries, from three seeds each.
"""

import argparse
import tempfile
from dataclasses import replace

import torch

from course.measure.tables import Table
from course.models.quantise import perplexity
from course.train.fit import fit
from course.train.recipes import vqvae

ENTRIES = (8, 16, 32, 64, 128, 256, 512)
RESTART = 0.05  # the recipe's own
WAYS = (("ema", RESTART), ("ema", 0.0), ("gradient", RESTART), ("gradient", 0.0))  # of learning 128 entries
EVERY, LOOKED = 20, 500  # updates between two looks at the use of the codebook; test pictures of a look


@torch.no_grad()
def use(settings, model, images):
    """Perplexity and share of used entries on test pictures."""
    model.eval()
    codes = vqvae.reconstructed(model, images)[1]
    model.train()
    return round(perplexity(codes, settings.entries), 2), round(codes.unique().numel() / settings.entries, 4)


def trained(settings, every, looked):
    """The trained model, its use of the codebook as [updates, perplexity, share used], and the seconds of the updates.

    It is the training of `chapter.train`, so that a notebook can repeat a row.
    """
    torch.manual_seed(settings.seed)
    model = vqvae.model(settings)
    task = vqvae.build(settings, model)
    images, curve = vqvae.load(settings, "test")[0].batch(range(looked))["image"], []
    for update in fit(task.players, task.batches, settings.steps, seed=settings.seed, precision=settings.precision):
        if update.step % every == 0 or update.step == 1:
            curve.append([update.step, *use(settings, model, images)])
    return task.players[0].trained.eval(), curve, update.seconds


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400, help="updates of each training (default 400)")
    parser.add_argument("--into", help="folder for the table; by default that of the stored tables")
    parser.add_argument("--smoke", action="store_true", help="a trial of seconds")
    options = parser.parse_args(argv)
    base, entries, count, every, looked, seeds = vqvae.PROFILES["quick"], ENTRIES, 2000, EVERY, LOOKED, 3
    if options.smoke:
        base, entries, count, every, looked, seeds = vqvae.PROFILES["smoke"], (8, 128), 16, 1, 16, 1
        options.steps, options.into = 2, options.into or tempfile.mkdtemp()
    base = replace(base, steps=options.steps)
    table = Table(
        "codebook",
        ("entries", "codebook", "restart", "seed"),
        made_by=f"python benchmarks/codebook.py --steps {options.steps}",
        dataset=base.dataset,
        settings={"recipe": "vqvae", "steps": base.steps, "batch": base.batch, "lr": base.lr, "dim": base.dim}
        | {"width": base.width, "pictures": count, "pictures of the curve": looked},
        into=options.into,
    )
    rows = [(n, "ema", RESTART, 0) for n in entries] + [(128, *way, seed) for seed in range(seeds) for way in WAYS]
    for n, codebook, restart, seed in rows:
        if table.get(n, codebook, restart, seed):
            continue
        settings = replace(base, entries=n, codebook=codebook, restart=restart, seed=seed)
        model, curve, seconds = trained(settings, every, looked)
        found = vqvae.metrics(settings, model, count)
        row = {"entries": n, "codebook": codebook, "restart": restart, "seed": seed, "seconds": round(seconds, 1)}
        row |= {"psnr": round(found["psnr"], 3), "perplexity": round(found["perplexity"], 2)}
        row |= {"used": round(found["used"], 4), "frechet": round(found["frechet_reconstruction"], 5)}
        table.store(row | {"curve": curve})
        print(
            f"{n} entries, {codebook}, restart {restart:g}, seed {seed}: {row['psnr']:.2f} dB in {seconds:.0f} s",
            flush=True,
        )
    print(f"{'entries':>7}  {'codebook':9}{'restart':>8}{'seed':>6}{'PSNR':>8}{'perplexity':>12}{'used':>7}")
    for row in table.content()["rows"]:
        print(
            f"{row['entries']:7}  {row['codebook']:9}{row['restart']:8g}{row['seed']:6}{row['psnr']:8.2f}"
            f"{row['perplexity']:12.1f}{row['used']:7.0%}"
        )


if __name__ == "__main__":
    main()
