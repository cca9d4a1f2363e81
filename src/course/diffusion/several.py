"""Many pictures by several processes: each samples some of them, and all end up with all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from course import UserError
from course.diffusion.samplers import Denoiser, last, normal, sample
from course.diffusion.schedule import Schedule
from course.train.processes import surroundings


def sample_several(
    schedule: Schedule,
    denoiser: Denoiser,
    seeds: Sequence[int],
    shape: Sequence[int],
    steps: int,
    *,
    cond: Tensor | Sequence[Any] | None = None,
    batch: int = 16,
    **options: Any,
) -> Tensor:
    """One picture for each seed, sampled by as many processes as ``accelerate launch`` or ``torchrun`` started.

    A seed gives a picture's starting noise and the noise of its steps, drawn on the CPU.  The pictures are cut into
    batches, and the batches dealt to the processes: which pictures are computed together does not depend on how many
    processes there are, so on the same kind of device one process and several give the same bits.

    Args:
        denoiser: its network must be on the process's device, ``surroundings().device``.
        seeds: N whole numbers, 0 or more.
        shape: of one picture, such as (C, H, W).
        steps, options: see :func:`course.diffusion.samplers.sample`.
        cond: N conditions, or none.
        batch: pictures computed together; N / batch should be a multiple of the number of processes.

    Returns:
        (N, *shape), in every process.

    Raises:
        UserError: as ``sample``; no seeds, or some that are no such numbers; a batch below 1; another number of
            conditions than of seeds.
    """
    seeds = list(seeds)
    if not seeds or any(type(seed) is not int or not 0 <= seed < 2**63 for seed in seeds):
        raise UserError("seeds must be whole numbers from 0 to 2^63 - 1, at least one")
    if type(batch) is not int or batch < 1:
        raise UserError(f"batch must be a whole number, at least 1, not {batch!r}")
    if cond is not None and len(cond) != len(seeds):
        raise UserError(f"{len(seeds)} seeds need {len(seeds)} conditions, not {len(cond)}")
    world = surroundings()
    pictures = torch.zeros(len(seeds), *shape, device=world.device)
    for number, start in enumerate(range(0, len(seeds), batch)):
        if number % world.num_processes != world.process_index:
            continue
        own = slice(start, start + batch)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds[own]]
        given = cond[own].to(world.device) if isinstance(cond, Tensor) else None if cond is None else cond[own]
        noise = normal(pictures[own], generators)
        pictures[own] = last(sample(schedule, denoiser, noise, steps, cond=given, generator=generators, **options))
    if world.num_processes == 1:
        return pictures
    from accelerate.utils import reduce

    return reduce(pictures, "sum")  # each has zeros where another one sampled
