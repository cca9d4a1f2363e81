"""Our sampler against Diffusers' StableDiffusionPipeline on the same weights: python benchmarks/pipeline_speed.py

One caption, 64x64 pixels, 20 steps of DDIM with guidance, text encoder and decoder included, models in memory; both in
turn in the same run, so that the ratio means something on any machine, and from the same noise, so that the pictures
can be compared.  A ratio above 1 says that ours is faster.
"""

import argparse
import time
from statistics import median

import torch

from course.data.tokens import tokenize
from course.diffusion.guidance import Guided
from course.diffusion.samplers import last, sample
from course.export import pipeline
from course.train import weights
from course.train.latents import latent_space
from course.train.recipes import ldm

CAPTION, SCALE = "large red circle top left", 3.0


def pair(steps):
    """Two ways from the same noise to pictures in [-1, 1]."""
    torch.manual_seed(0)
    if "ldm" in weights.names():
        settings, model = weights.settings("ldm"), weights.load("ldm")
    else:  # speed does not depend on training
        settings = ldm.PROFILES["full"]
        model = ldm.model(settings).eval().requires_grad_(False)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    space = latent_space(settings.latents)
    grid = settings.size // space.f
    noise, table = torch.randn(1, space.channels, grid, grid), ldm.schedule(settings)
    pipe = pipeline.pipeline(settings, model, space)
    pipe.set_progress_bar_config(disable=True)

    @torch.no_grad()
    def ours():
        null, cond = model.text(tokenize([""])), model.text(tokenize([CAPTION]))
        guided = Guided(ldm.denoiser(settings, model.unet), null, SCALE)
        states = sample(table, guided, noise.double(), steps, cond=cond, path=ldm.path(settings.T, steps))
        return space.decode(last(states).float())

    def theirs():
        options = {"guidance_scale": SCALE, "num_inference_steps": steps, "output_type": "pt"}
        return pipe(CAPTION, latents=noise, **options).images * 2 - 1

    return {"ours": ours, "Diffusers": theirs}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20, help="of the sampler (default 20)")
    parser.add_argument("--repeats", type=int, default=15, help="the median counts (default 15)")
    parser.add_argument("--smoke", action="store_true", help="a trial of seconds")
    options = parser.parse_args(argv)
    if options.smoke:
        options.steps, options.repeats = 2, 2
    ways = pair(options.steps)
    taken, pictures = {name: [] for name in ways}, {}
    for repeat in range(options.repeats + 2):
        for name, draw in ways.items():
            start = time.perf_counter()
            pictures[name] = draw()
            if repeat >= 2:  # the first two warm up
                taken[name].append(time.perf_counter() - start)
    seconds = {name: median(times) for name, times in taken.items()}
    apart = (pictures["ours"] - pictures["Diffusers"]).abs().max().item()
    print(f"one picture, {options.steps} steps with guidance; {torch.get_num_threads()} threads")
    for name, spent in seconds.items():
        print(f"{name:12}{spent:8.3f} s")
    print(f"ratio{seconds['Diffusers'] / seconds['ours']:15.2f}")
    print(f"largest difference of the pictures {apart:.1e}")


if __name__ == "__main__":
    main()
