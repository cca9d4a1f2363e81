"""The DDIM table: how good samples are for each number of steps and amount of chance.

    python benchmarks/ddim_table.py

Fills the stored table "ddim", cell by cell; cells that are there already are left alone.  Two processes can share the
work: one with --steps 1000, the other with --steps 5 10 20 50 100.  A model with classes draws each equally often, and
so do the real pictures of its floor: else chance alone, which draws one class more often than another, would move the
numbers by more than most cells differ.
"""

import argparse
import hashlib
import tempfile
import time
from functools import lru_cache
from pathlib import Path

import torch

from course import data, measure
from course.diffusion.samplers import last, sample
from course.measure.tables import Table
from course.train import checkpoint, weights
from course.train.recipes import ddpm
from course.train.settings import restored

STEPS = (5, 10, 20, 50, 100, 1000)
ETAS = (0.0, 0.2, 0.5, 1.0, "hat")  # "hat" is eta = 1 with the large variance
BATCH = 250


def cells(steps, count, few):
    """(steps, eta, clip, samples), the cheapest first."""
    clipped = [(n, eta, True, few if n == 1000 else count) for n in steps for eta in ETAS]
    free = [(n, eta, False, few) for n in steps if n < 1000 for eta in (0.0, 1.0, "hat")]
    return sorted(clipped + free, key=lambda cell: cell[0] * cell[3])


def opened(name):
    """The model, its settings, and what tells it from others, from a shipped name or a result file."""
    path = Path(name)
    if path.suffix != ".safetensors":
        weights.info(name)  # complains when there is none
        path = weights.folder() / f"{name}.safetensors"
    tensors, meta = checkpoint.load(path)
    digest = hashlib.sha256()  # of the weights alone: what is said of them beside may change
    for key in sorted(tensors):
        digest.update(key.encode() + tensors[key].numpy().tobytes())
    facts = {"model": meta["name"], "sha256": digest.hexdigest()[:16]}
    return weights.read(path), restored(ddpm.Settings, meta["settings"]), facts


def draw(settings, model, steps, eta, clip, count):
    """Samples (count, C, H, W) in [-1, 1].  Every cell starts from the same noise, and asks for the same classes."""
    test_set, process, denoiser = ddpm.load(settings, "test"), ddpm.schedule(settings), ddpm.denoiser(settings, model)
    images, total = [], ddpm.classes(settings)
    for start in range(0, count, BATCH):
        first, chance = torch.Generator().manual_seed(2 * start), torch.Generator().manual_seed(2 * start + 1)
        noise = torch.randn(min(BATCH, count - start), test_set.channels, *test_set.size, generator=first)
        options = {"eta": 1.0, "large": True} if eta == "hat" else {"eta": eta}
        if total:
            options["cond"] = torch.arange(start, start + len(noise)) % total
        images.append(last(sample(process, denoiser, noise, steps, clip=clip, generator=chance, **options)))
    return torch.cat(images).clamp(-1, 1)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ddpm", help="a shipped model or a result file of `course train`")
    parser.add_argument("--steps", type=int, nargs="+", choices=STEPS, default=STEPS, help="only these rows")
    parser.add_argument("--into", help="folder for the table; by default that of the stored tables")
    parser.add_argument("--smoke", action="store_true", help="a trial of seconds with an untrained model")
    options = parser.parse_args(argv)
    if options.smoke:
        settings, facts, count, few = ddpm.PROFILES["smoke"], {"model": "untrained"}, 16, 8
        model, options.into = ddpm.model(settings).eval(), options.into or tempfile.mkdtemp()
        wanted = cells((5,), count, few)
    else:
        model, settings, facts = opened(options.model)
        count, few = 2000, 500
        wanted = cells(options.steps, count, few)
    table = Table(
        "ddim",
        ("steps", "eta", "clip"),
        made_by="python benchmarks/ddim_table.py" + ("" if options.smoke else f" --model {facts['model']}"),
        dataset=settings.dataset,
        settings=facts
        | ({"classes": "each equally often"} if ddpm.classes(settings) else {})
        | {"samples": count, "samples of 1000 steps and without clipping": few},
        into=options.into,
    )
    train_set, test_set = data.load(settings.dataset, "train"), data.load(settings.dataset, "test")
    judge = "shapes" if test_set.channels == 3 else "glyphs"
    reference = lru_cache(lambda samples: test_set.batch(range(samples))["image"])
    if ddpm.classes(settings):  # the sets' first pictures hold each class equally often
        other = lambda samples: train_set.batch(range(samples))["image"]
        floor = lru_cache(lambda samples: measure.frechet(reference(samples), other(samples), judge))
    else:
        floor = lru_cache(lambda samples: measure.floor(reference(samples), train_set, judge))

    wanted = [cell for cell in wanted if table.get(*cell[:3]) is None]
    left, done, began = sum(steps * samples for steps, *_, samples in wanted), 0, time.perf_counter()
    print(f"{len(wanted)} cells to fill, {left / 1e6:.2f} million calls of the network", flush=True)
    for steps, eta, clip, samples in wanted:
        start = time.perf_counter()
        images = draw(settings, model, steps, eta, clip, samples)
        seconds = round(time.perf_counter() - start, 1)
        row = {"steps": steps, "eta": eta, "clip": clip, "samples": samples}
        row |= {"frechet": round(measure.frechet(reference(samples), images, judge), 4)}
        table.store(row | {"floor": round(floor(samples), 4), "seconds": seconds})
        done, left = done + steps * samples, left - steps * samples
        rate = done / (time.perf_counter() - began)
        print(
            f"{steps:5} steps, eta {eta}, {'clipped' if clip else 'free'}: {row['frechet']:.3f} "
            f"(floor {floor(samples):.3f}); {rate:.0f} calls a second, {left / rate / 60:.0f} minutes left",
            flush=True,
        )
    print_table(table.content()["rows"])


def print_table(rows):
    for clip in (True, False):
        print(f"\nFréchet distance, {'with' if clip else 'without'} clipping\nsteps" + "".join(f"{e:>8}" for e in ETAS))
        found = {(row["steps"], row["eta"]): row["frechet"] for row in rows if row["clip"] == clip}
        for steps in sorted({steps for steps, _ in found}):
            print(f"{steps:5}" + "".join(f"{found.get((steps, eta), float('nan')):8.3f}" for eta in ETAS))


if __name__ == "__main__":
    main()
