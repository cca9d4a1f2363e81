"""How much should the autoencoder shrink? Text-to-image models on pixels and on latents with f = 2, 4 and 8.

    python benchmarks/latent_factor.py

Fills the stored table "latent_factor".  Every row has the same training time in all: on latents a third of it trains
the autoencoder, on pixels the diffusion model has all of it.  Each U-Net sees 16 x 16 positions at most, what attention
at every level can afford on a CPU: larger grids enter as squares of pixels (`patch`).  The pictures have 32 x 32
pixels, a quarter of chapter 7's, so that a quarter of an hour is enough to learn something for every f.
"""

import argparse
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

from course.measure.tables import Table
from course.train import checkpoint
from course.train.recipes import kl, ldm
from course.train.run import rounded
from course.train.timed import trained_for

LATENT = {2: 3, 4: 4, 8: 16}  # numbers at each position of the latent
POSITIONS = 16  # most on a side that a U-Net works on
WIDTHS = (32, 64, 64)  # of the U-Nets at 16 x 16, 8 x 8 and 4 x 4 positions, from where each begins
REBUILT = ("psnr", "frechet_reconstruction")  # what is kept of the autoencoder's metrics
DRAWN = ("frechet", "frechet_floor", "precision", "recall", "ms_per_image")  # and of the model's
DRAWN += tuple(f"right_{factor}" for factor in (*ldm.FACTORS, "everything"))


def latents(f, settings, seconds, folder):
    """A trained autoencoder's file and what it can do; for f = 1 the pixels themselves."""
    if f == 1:
        return "pixels", {}
    model, facts = trained_for(seconds, kl, settings)
    metrics = kl.metrics(settings, model, 500 if seconds > 1 else 8)
    meta = {"kind": "weights", "name": f"f{f}", "recipe": "kl", "settings": asdict(settings), "metrics": metrics}
    meta |= {"dataset": settings.dataset, "parameters": sum(parameter.numel() for parameter in model.parameters())}
    path = Path(folder) / f"f{f}.safetensors"
    checkpoint.save(path, rounded(model), meta)
    return str(path), {"autoencoder_steps": facts["steps"]} | {name: metrics[name] for name in REBUILT}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--into", help="folder for the table; by default that of the stored tables")
    parser.add_argument("--smoke", action="store_true", help="a trial of seconds")
    options = parser.parse_args(argv)
    seconds, size, pictures, samples, factors = 900, 32, 30_000, 500, (8, 4, 2, 1)
    base = ldm.Settings(widths=WIDTHS, text_width=64, ema=0.999)
    if options.smoke:
        seconds, size, pictures, samples, factors = 0.1, 16, 50, 8, (4, 1)
        base = replace(base, widths=(16, 16, 16), groups=2, text_width=16, batch=8)
    table = Table(
        "latent_factor",
        ["f"],
        made_by="python benchmarks/latent_factor.py",
        dataset="shapes",
        settings={"seconds": seconds, "size": size, "pictures": pictures, "samples": samples},
        into=options.into or (tempfile.mkdtemp() if options.smoke else None),
    )
    with tempfile.TemporaryDirectory() as folder:
        for f in factors:
            if table.get(f) is not None:
                continue
            widths = kl.Settings().widths[: f.bit_length()]
            first = kl.Settings(size=size, widths=widths, latent=LATENT.get(f, 3), batch=min(32, base.batch))
            name, facts = latents(f, first, seconds / 3, folder)
            positions = min(size // f, POSITIONS)
            settings = replace(base, latents=name, size=size, count=pictures, patch=size // f // positions)
            settings = replace(settings, widths=base.widths[-(positions // 4).bit_length() :])
            model, told = trained_for(seconds - (seconds / 3 if f > 1 else 0), ldm, settings)
            row = {"f": f, "numbers": (size // f) ** 2 * first.latent, **facts, "steps": told["steps"]}
            row |= {"parameters": sum(parameter.numel() for parameter in model.parameters())}
            metrics = ldm.metrics(settings, model, samples)
            table.store(row | {key: metrics[key] for key in DRAWN})
            print(table.get(f), flush=True)


if __name__ == "__main__":
    main()
