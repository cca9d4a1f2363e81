"""Drawing codes with and without a memory of the past: python benchmarks/sampling_speed.py

The PixelCNN remembers features, the GPT keys and values; without a memory each computes all of the past again for
every code.  Both ways in turn in the same run and from the same seed, so that the ratio means something on any machine
and the codes can be compared.
"""

import argparse
import time
from statistics import median

import torch
from torch import nn

from course.diffusion.samplers import last
from course.models import gpt, pixelcnn

ENTRIES, CLASSES = 128, 10


def generic(model):
    """Weights as large as those of a trained network: with its first ones a PixelCNN's residual branches are zero."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return model.eval()


def by_pixelcnn(side, count, width, layers):
    """remember -> codes (count, side^2)."""
    model, label = generic(pixelcnn.PixelCNN(ENTRIES, width, layers, classes=CLASSES)), torch.arange(count) % CLASSES

    def draw(remember):
        generator = torch.Generator().manual_seed(0)
        states = pixelcnn.generate(model, count, (side, side), label, incremental=remember, generator=generator)
        return last(states).flatten(1)

    return draw


def by_gpt(side, count, width, depth):
    """remember -> codes (count, side^2)."""
    model = generic(gpt.GPT(ENTRIES, CLASSES, side**2, width, depth))
    prefix = ENTRIES + torch.arange(count)[:, None] % CLASSES

    def draw(remember):
        generator = torch.Generator().manual_seed(0)
        return last(gpt.generate(model, prefix, side**2, cached=remember, generator=generator))[:, 1:]

    return draw


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=16, help="of the map of codes (default 16, so 256 codes)")
    parser.add_argument("--count", type=int, default=4, help="maps drawn at once (default 4)")
    parser.add_argument("--repeats", type=int, default=3, help="the median counts (default 3)")
    parser.add_argument("--smoke", action="store_true", help="a trial of seconds")
    options = parser.parse_args(argv)
    pixels, transformer = {"width": 64, "layers": 6}, {"width": 128, "depth": 4}
    if options.smoke:
        options.side, options.count, options.repeats = 5, 2, 1
        pixels, transformer = {"width": 8, "layers": 2}, {"width": 16, "depth": 2}
    torch.manual_seed(0)
    ways = {
        "PixelCNN": by_pixelcnn(options.side, options.count, **pixels),
        "GPT": by_gpt(options.side, options.count, **transformer),
    }
    print(f"seconds for {options.count} maps of {options.side}x{options.side} codes; {torch.get_num_threads()} threads")
    print(f"{'':12}{'without':>10}{'with':>10}{'ratio':>8}{'codes/s':>10}{'':3}codes")
    for name, draw in ways.items():
        taken, codes = {False: [], True: []}, {}
        draw(True)  # warms up
        for _ in range(options.repeats):
            for remember, times in taken.items():
                start = time.perf_counter()
                codes[remember] = draw(remember)
                times.append(time.perf_counter() - start)
        slow, fast = median(taken[False]), median(taken[True])
        same = "identical" if torch.equal(codes[False], codes[True]) else "DIFFERENT"
        rate = codes[True].numel() / fast
        print(f"{name:12}{slow:10.2f}{fast:10.2f}{slow / fast:8.1f}{rate:10.0f}{'':3}{same}", flush=True)


if __name__ == "__main__":
    main()
