"""Models of the same codes at equal training time: PixelCNN, PixelCNN on codes as grey values, GPT, GPT on pixels.

    python benchmarks/priors.py

Fills the stored table "priors".  All learn the digits' codes by the shipped `vqvae`, told the class, except the last
one: its codes are the pixels themselves in sixteen grey levels, 784 of them.  Each trains for the same time.
"""

import argparse
import tempfile
import time

import torch

from course.measure.tables import Table
from course.train.fit import fit
from course.train.recipes import gpt, pixelcnn

TRIAL = 10  # updates that tell how long one takes
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


def trained(recipe, settings, seconds):
    """The model after so many seconds of updates (the learning rate falls to zero at their end), and what it took."""
    torch.manual_seed(settings.seed)
    model = recipe.model(settings)
    task = recipe.build(settings, model)  # encodes the pictures: before the clock starts
    start = {key: value.clone() for key, value in model.state_dict().items()}
    for updates in (TRIAL // 2, TRIAL):  # the very first updates take longer than later ones
        for progress in fit(task.players, task.batches, updates, precision=settings.precision):  # noqa: B007
            pass
    model.load_state_dict(start)
    steps = max(TRIAL, int(seconds / progress.seconds * TRIAL))
    (player,) = task.players
    player.warmup = min(100, steps // 5)
    updates = fit(task.players, task.batches, steps, seed=settings.seed, precision=settings.precision)
    for progress in updates:  # noqa: B007
        pass
    return player.trained.cpu().eval(), {"steps": steps, "seconds": round(progress.seconds, 1)}


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
            model, facts = trained(recipe, settings, seconds)
            metrics = recipe.metrics(settings, model, few if name == "pixels" else samples)
            count = sum(parameter.numel() for parameter in model.parameters())
            table.store({"model": name, "parameters": count, **facts, **{key: metrics[key] for key in COLUMNS}})
            print(f"{table.get(name)}  ({time.perf_counter() - start:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
