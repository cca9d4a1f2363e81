"""Models of the same codes at equal training time: PixelCNN, PixelCNN on codes as grey values, GPT, GPT on pixels.

    python benchmarks/priors.py

Fills the stored table "priors".  All learn the digits' codes by the shipped `vqvae`, told the class, except the last
one: its codes are the pixels themselves in sixteen grey levels, 784 of them.  Each trains for the same time.
"""

import argparse
import tempfile
import time

from course.measure.tables import Table
from course.train.recipes import gpt, pixelcnn
from course.train.timed import trained_for

MODELS = ("pixelcnn", "grey", "gpt", "pixels")
COLUMNS = ("nats", "bits", "frechet", "frechet_floor", "recognised", "ms_per_image")


def settings_of(name, pictures):
    """The recipe and its settings."""
    common = {"count": pictures, "batch": 64, "ema": 0.998}
    if name in ("pixelcnn", "grey"):
        return pixelcnn, pixelcnn.Settings(embed="grey" if name == "grey" else "learnt", **common)
    if name == "gpt":
        return gpt, gpt.Settings(**common)
    return gpt, gpt.Settings(codes="pixels", **common | {"batch": 8})


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS, choices=MODELS, help="only these rows")
    parser.add_argument("--into", help="folder for the table; by default that of the stored tables")
    parser.add_argument("--smoke", action="store_true", help="a trial of seconds")
    options = parser.parse_args(argv)
    seconds, pictures, samples, few = (0.2, 200, 20, 4) if options.smoke else (100, 50_000, 2000, 200)
    table = Table(
        "priors",
        ["model"],
        made_by="python benchmarks/priors.py",
        dataset="glyphs",
        settings={"seconds": seconds, "pictures": pictures, "samples": samples, "samples of pixels": few},
        into=options.into or (tempfile.mkdtemp() if options.smoke else None),
    )
    for name in options.models:
        if table.get(name) is None:
            start = time.perf_counter()
            recipe, settings = settings_of(name, pictures)
            model, facts = trained_for(seconds, recipe, settings)
            metrics = recipe.metrics(settings, model, few if name == "pixels" else samples)
            count = sum(parameter.numel() for parameter in model.parameters())
            table.store({"model": name, "parameters": count, **facts, **{key: metrics[key] for key in COLUMNS}})
            print(f"{table.get(name)}  ({time.perf_counter() - start:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
