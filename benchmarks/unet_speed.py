"""How fast the U-Net trains and samples, and where the time goes: python benchmarks/unet_speed.py

Our loop (bfloat16, averaged weights, clipped gradients) against Diffusers' UNet2DModel of the same architecture in a
plain float32 loop with Adam.  All of it in turn in the same run, so that the ratios mean something on any machine.
Diffusers' network is measured once more with a position for every pixel, as it is used elsewhere; ours, and the first
one of theirs, see squares of 2 x 2 pixels.
"""

import argparse
import resource
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from statistics import median

import torch
from diffusers import UNet2DModel
from torch import nn
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from course.train.fit import fit
from course.train.recipes import ddpm

KINDS = (  # of the profiler's names; the first that fits counts
    ("convolutions", ("convolution",)),
    ("matrix products", ("addmm", "bmm", "aten::mm", "linear")),
    ("norms", ("group_norm",)),
    ("optimizer, average, clipping", ("adam", "_foreach", "lerp", "zero_grad", "optimizer")),
)
MEMORY = {"nothing but the libraries": 0, "our loop, bfloat16": 1, "Diffusers, float32": 2, "sampling 64 pictures": 3}


def ours(settings, **changes):
    """Our training as it is: yields after each update."""
    settings = replace(settings, steps=10_000, **changes)
    task = ddpm.build(settings, ddpm.model(settings))
    return fit(task.players, task.batches, settings.steps, precision=settings.precision)


def theirs(settings):
    """The plain loop: yields after each update."""
    wide, low = settings.width, 2 * settings.width
    model = UNet2DModel(
        in_channels=settings.patch**2,
        out_channels=settings.patch**2,
        block_out_channels=(wide, low),
        layers_per_block=settings.depth,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=min(low, 64),
        norm_num_groups=max(1, wide // 8),
    )
    for module in model.modules():
        if isinstance(module, nn.GroupNorm):  # groups of eight channels at every width, as ours
            module.num_groups = max(1, min(32, module.num_channels // 8))
    noise, optimizer = ddpm.schedule(settings), torch.optim.Adam(model.parameters(), lr=settings.lr)
    for batch in ddpm.build(settings).batches(0):
        x0 = batch["image"]
        t, eps = torch.randint(len(noise), (len(x0),)), torch.randn_like(x0)
        x = functional.pixel_unshuffle(noise.add_noise(x0, t, eps), settings.patch)
        loss = functional.mse_loss(functional.pixel_shuffle(model(x, t).sample, settings.patch), eps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield model


def interleaved(loops, updates, repeats):
    """Median seconds an update of each loop."""
    taken = {name: [] for name in loops}
    for _ in range(repeats + 1):
        for name, loop in loops.items():
            start = time.perf_counter()
            for _ in range(updates):
                next(loop)
            taken[name].append((time.perf_counter() - start) / updates)
    return {name: median(times[1:]) for name, times in taken.items()}  # the first one warms up


def peak(side, repeats=5):
    """Operations a second of a large matrix product in bfloat16: the best."""
    a, best = torch.randn(side, side, dtype=torch.bfloat16), float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best


def shares(loop, settings, updates):
    """Kind of work -> its share of the time of our training, from a profile."""
    batches, start = ddpm.build(settings).batches(0), time.perf_counter()
    for _ in range(updates):
        next(batches)
    spent = Counter(data=time.perf_counter() - start)
    with profile(activities=[ProfilerActivity.CPU]) as record:
        start = time.perf_counter()
        for _ in range(updates):
            next(loop)
        whole = time.perf_counter() - start
    for event in record.key_averages():
        fitting = (kind for kind, words in KINDS if any(word in event.key.lower() for word in words))
        spent[next(fitting, "element-wise and copies")] += event.self_cpu_time_total / 1e6
    spent["Python and the profiler"] = max(0.0, whole - sum(spent.values()))
    total = sum(spent.values())
    return {kind: seconds / total for kind, seconds in spent.most_common()}


def remember(settings, which, updates):
    """Do one kind of work and print the most memory that this process has held, in MB."""
    if which in (1, 2):
        loop = ours(settings) if which == 1 else theirs(settings)
        for _ in range(updates):
            next(loop)
    elif which == 3:
        ddpm.draw(settings, ddpm.model(settings).eval(), 64, steps=updates)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(most / (2**20 if sys.platform == "darwin" else 2**10))


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=3, help="timed together (default 3)")
    parser.add_argument("--repeats", type=int, default=7, help="the median counts (default 7)")
    parser.add_argument("--pictures", type=int, default=16, help="sampled with 20 and with 1000 steps (default 16)")
    parser.add_argument("--smoke", action="store_true", help="a trial of seconds")
    parser.add_argument("--memory", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    settings, side, most = ddpm.PROFILES["full"], 4096, 1000
    if options.smoke:
        settings, side, most = ddpm.PROFILES["smoke"], 256, 40
        options.updates, options.repeats, options.pictures = 1, 1, 2
    if options.memory is not None:
        return remember(settings, options.memory, options.updates)

    print("peak memory in MB")  # first: on Linux a process inherits the peak of the one that started it
    for name, which in MEMORY.items():
        command = [sys.executable, __file__, f"--memory={which}", *(["--smoke"] if options.smoke else [])]
        most_held = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        print(f"{name:28}{float(most_held):10.0f}", flush=True)

    loops = {"ours, bfloat16": ours(settings), "ours, float32": ours(settings, precision="no")}
    loops["Diffusers, float32"] = theirs(settings)
    loops["the same, every pixel"] = theirs(replace(settings, patch=1))
    taken = interleaved(loops, options.updates, options.repeats)
    slow = taken["Diffusers, float32"]
    print(f"\n{torch.get_num_threads()} threads, batch {settings.batch}\n{'training':28}{'images/s':>10}{'ratio':>8}")
    for name, seconds in taken.items():
        print(f"{name:28}{settings.batch / seconds:10.1f}{slow / seconds:8.2f}")
    counts = [sum(p.numel() for p in m.parameters()) for m in (ddpm.model(settings), next(loops["Diffusers, float32"]))]
    print("parameters: ours {:,}, Diffusers {:,} (biases of the queries, keys and values)".format(*counts))

    with FlopCounterMode(display=False) as counter:
        next(loops["ours, bfloat16"])
    rate, best = counter.get_total_flops() / taken["ours, bfloat16"], peak(side)
    print(f"\n{rate / 1e9:.0f} of {best / 1e9:.0f} Gflop/s, the peak of a bfloat16 matrix product: {rate / best:.1%}")
    for kind, share in shares(loops["ours, bfloat16"], settings, options.updates).items():
        print(f"{kind:34}{share:6.1%}")

    model, seconds = ddpm.model(settings).eval(), {}
    for steps in (20, 20, most):  # the first one warms up
        start = time.perf_counter()
        ddpm.draw(settings, model, options.pictures, steps=steps)
        seconds[steps] = time.perf_counter() - start
    print(f"\nsampling {options.pictures} pictures: 20 steps {seconds[20]:.2f} s, {most} steps {seconds[most]:.1f} s")
    print(f"ratio {seconds[most] / seconds[20]:.1f}")


if __name__ == "__main__":
    main()
