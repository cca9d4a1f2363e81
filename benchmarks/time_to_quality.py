"""How soon samples get good: the recipe of chapter 3 against a textbook diffusion model, by seconds of training.

    python benchmarks/time_to_quality.py

Fills the stored table "time_to_quality".  Ours is trained anew for each budget, because its learning rate falls to
zero at the end.  The baseline has a constant rate: one run is measured on its way.  Measuring takes no training time.
Run it on an idle machine; or, on two cores, both sides at once with OMP_NUM_THREADS=1, each with its --who.
"""

import argparse
import math
import tempfile
import time
from collections import deque
from dataclasses import replace

import torch
from torch import nn
from torch.nn import functional

from course import data, measure
from course.diffusion import schedule as schedules
from course.diffusion.samplers import last, sample
from course.measure.tables import Table
from course.train.fit import fit
from course.train.recipes import ddpm
from course.train.run import hardware

BUDGETS = {"ours": (30, 60, 120, 180, 300), "baseline": (60, 120, 300, 600)}  # seconds
NOISE = schedules.linear()


class Block(nn.Module):
    """Two convolutions with layer norm over the whole feature map, shifted by the time, around them a shortcut."""

    def __init__(self, before, after, side):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(before, after, 3, padding=1), nn.LayerNorm([before, side, side])
        self.conv2, self.norm2 = nn.Conv2d(after, after, 3, padding=1), nn.LayerNorm([after, side, side])
        self.time, self.shortcut = nn.Linear(128, after), nn.Conv2d(before, after, 1)

    def forward(self, x, time):
        h = self.conv1(functional.silu(self.norm1(x))) + self.time(time)[:, :, None, None]
        return self.shortcut(x) + self.conv2(functional.silu(self.norm2(h)))


class Textbook(nn.Module):
    """A plain U-Net at the picture's full resolution: 28, 14 and 7 pixels with 32, 64 and 128 channels."""

    def __init__(self, side=28, widths=(32, 64, 128)):
        super().__init__()
        a, b, c = widths
        self.time = nn.Sequential(nn.Linear(32, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU())
        self.first, self.last = nn.Conv2d(1, a, 3, padding=1), nn.Conv2d(a, 1, 3, padding=1)
        self.down1, self.down2 = Block(a, a, side), Block(a, b, side // 2)
        self.middle = Block(b, c, side // 4)
        self.up2, self.up1 = Block(c + b, b, side // 2), Block(b + a, a, side)

    def forward(self, x, t, cond=None):
        angles = t[:, None] * torch.exp(torch.arange(16) * -math.log(10_000) / 16)
        time = self.time(torch.cat([angles.sin(), angles.cos()], 1))
        full = self.down1(self.first(x), time)
        half = self.down2(functional.max_pool2d(full, 2), time)
        h = self.middle(functional.max_pool2d(half, 2), time)
        h = self.up2(torch.cat([functional.interpolate(h, scale_factor=2), half], 1), time)
        return self.last(self.up1(torch.cat([functional.interpolate(h, scale_factor=2), full], 1), time))


def baseline(train_set, budgets, batch):
    """The textbook's loop: Adam, float32, no average of the weights.  Yields (budget, updates, seconds, model)."""
    torch.manual_seed(0)
    model = Textbook()
    optimizer, spent, updates = torch.optim.Adam(model.parameters(), lr=1e-3), 0.0, 0
    batches = data.batches(train_set, batch)
    for budget in budgets:
        while spent < budget:
            start = time.perf_counter()
            x0 = next(batches)["image"]
            t, eps = torch.randint(1000, (len(x0),)), torch.randn_like(x0)
            loss = functional.mse_loss(model(NOISE.add_noise(x0, t, eps), t), eps)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            spent, updates = spent + time.perf_counter() - start, updates + 1
        yield budget, updates, spent, model


def fitted(settings):
    """The recipe's averaged model and the seconds of its updates."""
    torch.manual_seed(settings.seed)
    model = ddpm.model(settings)
    task = ddpm.build(settings, model)
    loop = fit(task.players, task.batches, settings.steps, seed=settings.seed, precision=settings.precision)
    seconds = deque(loop, maxlen=1).pop().seconds
    return task.players[0].trained.eval(), seconds


def ours(base, budgets, trial):
    """The recipe, trained anew for each budget.  Yields (budget, updates, seconds, model)."""
    pace = None  # seconds an update: from a trial, later from the run before
    for budget in budgets:
        pace = pace or fitted(replace(base, steps=trial))[1] / trial
        steps = max(1, round(budget / pace))
        model, seconds = fitted(replace(base, steps=steps))
        pace = seconds / steps
        yield budget, steps, seconds, model


@torch.no_grad()
def draw(denoiser, count):
    torch.manual_seed(0)
    parts = torch.randn(count, 1, 28, 28).split(250)
    return torch.cat([last(sample(NOISE, denoiser, x, 25, clip=True)) for x in parts]).clamp(-1, 1)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--who", nargs="+", choices=BUDGETS, default=list(BUDGETS), help="only these sides")
    parser.add_argument("--into", help="folder for the table; by default that of the stored tables")
    parser.add_argument("--smoke", action="store_true", help="a trial of seconds")
    options = parser.parse_args(argv)
    base, budgets, count, batch, trial = ddpm.PROFILES["quick"], BUDGETS, 1000, 128, 40
    if options.smoke:
        base, budgets, count, batch, trial = ddpm.PROFILES["smoke"], dict.fromkeys(BUDGETS, (0.1, 0.2)), 4, 8, 1
        options.into = options.into or tempfile.mkdtemp()
    facts = {"ours": "recipe ddpm, quick profile, one run for each budget", "samples": count, "computer": hardware()}
    facts |= {"threads": torch.get_num_threads()}
    facts |= {"baseline": f"plain U-Net, float32, Adam 1e-3, batch {batch}, no EMA, one run measured on its way"}
    table = Table(
        "time_to_quality",
        ("who", "budget"),
        made_by="python benchmarks/time_to_quality.py",
        dataset="glyphs",
        settings=facts | {"sampler": "25 steps, eta 0, clipped"},
        into=options.into,
    )
    train_set = ddpm.load(base, "train")
    real = ddpm.load(base, "test").batch(range(count))["image"]
    floor = round(measure.floor(real, train_set, "glyphs"), 4)
    missing = {who: [b for b in budgets[who] if table.get(who, b) is None] for who in options.who}
    for who, left in missing.items():
        run = ours(base, left, trial) if who == "ours" else baseline(train_set, left, batch)
        for budget, updates, seconds, model in run:
            denoiser = ddpm.denoiser(base, model) if who == "ours" else model
            row = {"who": who, "budget": budget, "seconds": round(seconds, 1), "updates": updates}
            row |= {"parameters": sum(p.numel() for p in model.parameters())}
            row |= {"frechet": round(measure.frechet(real, draw(denoiser, count), "glyphs"), 4), "floor": floor}
            table.store(row)
            print(f"{who:9}{seconds:7.0f} s {updates:6} updates: Fréchet distance {row['frechet']:.3f}", flush=True)

    goal, others = table.get("baseline", budgets["baseline"][-1]), [table.get("ours", b) for b in budgets["ours"]]
    if goal and all(others):
        reached = [row for row in others if row["frechet"] <= goal["frechet"]]
        when = f"{reached[0]['seconds']:.0f} s" if reached else f"more than {others[-1]['seconds']:.0f} s"
        print(f"the baseline's {goal['frechet']:.3f} of {goal['seconds']:.0f} s is reached by ours in {when}")


if __name__ == "__main__":
    main()
