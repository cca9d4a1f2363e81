"""What the parts of a denoiser are worth: five networks, each trained for the same time.

    python benchmarks/denoisers.py

Fills the stored table "denoisers".  All five have about 2.6 million parameters.  How many updates fit into the time is
measured first, because the learning rate falls to zero over the run.  Run it on an idle machine.
"""

import argparse
import base64
import io
import tempfile
import time
from dataclasses import replace

import torch
from PIL import Image

from course import measure
from course.diffusion.objective import simple_loss
from course.measure.tables import Table
from course.train.fit import fit
from course.train.recipes import ddpm
from course.train.run import hardware

WIDTHS = {"plain": 128, "residual": 128, "timeless": 64, "unet": 64, "attention": 64}


def fitted(settings):
    """The trained model, its losses and the seconds of the updates."""
    torch.manual_seed(settings.seed)
    model = ddpm.model(settings)
    task = ddpm.build(settings, model)
    losses = []
    for update in fit(task.players, task.batches, settings.steps, seed=settings.seed, precision=settings.precision):
        losses.append(update.losses["denoiser"])
        if update.step % 100 == 0:
            print(f"  {update.step} of {update.steps} updates, {update.seconds:.0f} s", flush=True)
    return task.players[0].trained.eval(), losses, update.seconds


def updates(settings, seconds, trial=20):
    """How many updates fit into the time, from a short trial."""
    task = ddpm.build(settings, ddpm.model(settings))
    for update in fit(task.players, task.batches, 2 * trial, seed=1, precision=settings.precision):
        if update.step == trial:
            start = update.seconds  # the first half warms up
    return max(1, round(seconds * trial / (update.seconds - start)))


@torch.no_grad()
def test_loss(settings, model, count):
    """Loss on test pictures; the times and the noise are the same for every network."""
    test_set, losses = ddpm.load(settings, "test"), []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for start in range(0, count, 250):
            images = test_set.batch(range(start, min(start + 250, count)))["image"]
            noise, denoiser = ddpm.schedule(settings), ddpm.denoiser(settings, model)
            losses.append(simple_loss(noise, "eps", denoiser, images).item() * len(images))
    return sum(losses) / count


def strip(images):
    """Pictures (N, 1, H, W) in [-1, 1], side by side, as the text of a PNG file in base 64."""
    levels = (images[:, 0] * 127.5 + 127.5).round().to(torch.uint8)
    file = io.BytesIO()
    Image.fromarray(torch.cat(list(levels), 1).numpy()).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=240, help="of training for each network (default 240)")
    parser.add_argument("--into", help="folder for the table; by default that of the stored tables")
    parser.add_argument("--smoke", action="store_true", help="a trial of seconds")
    options = parser.parse_args(argv)
    count, base, trial = 1000, ddpm.PROFILES["full"], 20
    if options.smoke:
        count, base, trial = 16, ddpm.PROFILES["smoke"], 1
        options.seconds, options.into = 0.1, options.into or tempfile.mkdtemp()
    facts = {"recipe": "ddpm", "batch": base.batch, "lr": base.lr, "ema": base.ema, "patch": base.patch}
    facts |= {"widths": WIDTHS, "budget": options.seconds, "samples": count}
    facts |= {"sampler": "50 steps, eta 0, clipped", "computer": hardware()}
    table = Table(
        "denoisers",
        ("network",),
        made_by=f"python benchmarks/denoisers.py --seconds {options.seconds:g}",
        dataset=base.dataset,
        settings=facts,
        into=options.into,
    )
    real = ddpm.load(base, "test").batch(range(count))["image"]
    floor = round(measure.floor(real, ddpm.load(base, "train"), "glyphs"), 4)
    for network, width in WIDTHS.items():
        if table.get(network):
            continue
        settings = replace(base, network=network, width=base.width if options.smoke else width)
        settings = replace(settings, steps=updates(settings, options.seconds, trial))
        print(f"{network}: {settings.steps} updates in about {options.seconds:g} s", flush=True)
        model, losses, seconds = fitted(settings)
        start = time.perf_counter()
        fake = ddpm.draw(settings, model, count)[0]
        row = {"network": network, "width": settings.width, "parameters": sum(p.numel() for p in model.parameters())}
        row |= {"updates": settings.steps, "seconds": round(seconds, 1)}
        tail = losses[-max(1, len(losses) // 10) :]
        row |= {"loss": round(sum(tail) / len(tail), 5), "test_loss": round(test_loss(settings, model, 2 * count), 5)}
        row |= {"frechet": round(measure.frechet(real, fake, "glyphs"), 4), "floor": floor, "strip": strip(fake[:8])}
        table.store(row)
        print(f"  measured in {time.perf_counter() - start:.0f} s", flush=True)
    print(f"{'network':12}{'parameters':>12}{'updates':>9}{'seconds':>9}{'loss':>9}{'test':>9}{'Fréchet':>9}")
    for row in table.content()["rows"]:
        print(
            f"{row['network']:12}{row['parameters']:12,}{row['updates']:9}{row['seconds']:9.0f}"
            f"{row['loss']:9.4f}{row['test_loss']:9.4f}{row['frechet']:9.3f}"
        )


if __name__ == "__main__":
    main()
