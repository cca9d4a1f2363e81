"""The only training loop of the book: `fit` updates one or several players and yields its progress.

One player is ordinary training; two are a GAN.  The same code runs on a CPU, on a GPU, and in several
processes (``accelerate launch`` or ``torchrun``), in float32 or bfloat16.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import AdamW
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from course import UserError
from course.train import checkpoint as files
from course.train.processes import alike, average_gradients, mean, own_slice, split, surroundings

if TYPE_CHECKING:
    from accelerate import PartialState

Batch = dict[str, Any]  # tensors and lists with one entry for each item
LOOK_EVERY = 50  # updates between two looks at the losses on a GPU, where each look waits for the device


class TrainingError(UserError):
    """A training that cannot go on: a loss or a gradient is not finite."""


@dataclass
class Player:
    """A network with its loss and the way it is updated.

    Attributes:
        name: unique among the players; heads its entries in losses and checkpoints.
        module: the network; its parameters that require gradients are trained.
        loss: batch -> mean loss over the batch, a scalar, alone or with a dict of further scalars to report.
        lr: learning rate of AdamW after warm-up.
        weight_decay: of AdamW (decoupled; Loshchilov and Hutter 2019).
        ema: decay of the exponential moving average of the weights, below 1; None keeps no average.  In
            update n, counted from 0, it is at most (1 + n) / (10 + n), so that a short training's average does
            not remember its random start.
        betas: decay of AdamW's two moments.
        clip: largest norm of the gradient over all parameters, larger ones are scaled down; or None.
        warmup: updates over which the learning rate rises linearly.
        decay: whether it then falls to zero along a cosine over the rest of the run.
    """

    name: str
    module: nn.Module
    loss: Callable[[Batch], Tensor | tuple[Tensor, dict[str, Tensor]]]
    lr: float = 1e-3
    weight_decay: float = 0.0
    ema: float | None = None
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float | None = 1.0
    warmup: int = 0
    decay: bool = False
    averaged: AveragedModel | None = field(default=None, init=False, repr=False)  # filled in by `fit`

    @property
    def trained(self) -> nn.Module:
        """What a training leaves for use: the averaged network if there is one, else the network."""
        return self.module if self.averaged is None else self.averaged.module

    def rate(self, step: int, steps: int) -> float:
        """Learning rate of update ``step``, counted from 0, in a run of ``steps``; no other state."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        if not self.decay:
            return self.lr
        return self.lr * 0.5 * (1 + math.cos(math.pi * (step - self.warmup) / (steps - self.warmup)))


@dataclass(frozen=True)
class Progress:
    """The state of a training after an update.

    Attributes:
        step: updates done, from 1 to ``steps``.
        steps: updates of the whole run.
        seconds: wall time of all updates so far, those before a resume included, without the caller's time.
        tensors: the losses of this update where they were computed; `losses` are the same as numbers.
    """

    step: int
    steps: int
    seconds: float
    tensors: Mapping[str, Tensor] = field(repr=False)

    @property
    def losses(self) -> dict[str, float]:
        """Means over the global batch: a player's loss under its name, its further scalars as name/scalar."""
        return dict(zip(self.tensors, torch.stack(list(self.tensors.values())).tolist()))


def step_seed(seed: int, step: int, process: int = 0) -> int:
    """The torch seed that `fit` sets before update ``step``, counted from 0, in one of its processes."""
    return int(np.random.SeedSequence((seed, step, process)).generate_state(1, np.uint64)[0] >> 1)


def fit(
    players: Sequence[Player],
    batches: Callable[[int], Iterator[Batch]],
    steps: int,
    *,
    seed: int = 0,
    precision: str = "no",
    checkpoint: str | Path | None = None,
    every: int | None = None,
    resume: bool = False,
    meta: Mapping[str, Any] | None = None,
    parts: int = 1,
) -> Generator[Progress, None, None]:
    """Train, yielding after each update.

    Each update draws one batch; the players are updated on it in turn.  Before, torch's random numbers are
    seeded by (seed, step), so on a CPU a resumed run equals an uninterrupted one bit by bit.

    With several processes each draws the same global batch and keeps its slice; gradients and reported losses
    are averaged.  The processes draw different noise, so the run equals that of one process where the loss
    draws none.  A layer that looks across the batch, such as batch norm, sees the slice only; buffers are
    those of process 0.

    Args:
        players: moved to the device and trained in place.
        batches: step to start from -> iterator of batches, which are dicts of tensors and lists with one
            entry for each item.  Batch i must depend on i alone (`course.data.batches` does so).
        steps: updates of the whole run, those before a resume included.
        seed: of everything random in the losses.
        precision: "no" for float32, "bf16" for losses computed under bfloat16 autocast (parameters stay
            float32).
        checkpoint: file that holds the training: networks, averages, optimizers, step, seconds.  Written at
            the end, and when the caller leaves the loop early (then it goes on from there).
        every: also write it each time after so many updates.
        resume: go on from the checkpoint.
        meta: further entries for the checkpoint's description.
        parts: how many a batch is worked through in, one after the other, their gradients added up before they are
            clipped: the same update with a fraction of the memory (gradient accumulation).

    Raises:
        UserError: an argument is out of range; the checkpoint is missing, belongs to another training or does
            not fit; a batch does not divide by the number of processes, or has fewer items than parts.
        TrainingError: a loss or gradient is not finite, with the step and the seed that reproduce it.
            On a CPU that player's weights are still those before the update; a checkpoint never holds such values.
    """
    _check(players, steps, seed, precision, checkpoint, every, resume, parts)
    world = surroundings()
    optimizers = [_prepared(player, world) for player in players]

    # Go on from the checkpoint, or start
    record = {"kind": "checkpoint", "seed": seed, "precision": precision}
    record["players"] = [player.name for player in players]
    done, seconds = _resumed(Path(checkpoint), players, optimizers, record, steps) if resume else (0, 0.0)
    for player in players:
        alike(player.module.state_dict().values(), world)

    def keep(done: int, seconds: float) -> None:
        if checkpoint is not None and world.is_main_process:
            state = {"steps": steps, "step": done, "seconds": seconds}
            files.save(checkpoint, _tensors(players, optimizers), {**(meta or {}), **record, **state})

    def updates(done: int, seconds: float) -> Generator[Progress, None, None]:
        watch, stream, kept = _Watch(seed, world), iter(batches(done)), done
        while done < steps:
            start = time.perf_counter()
            batch = next(stream, None)
            if batch is None:
                raise UserError(f"the batches end at step {done} of {steps}")
            pieces = split(own_slice(batch, world), parts)
            torch.manual_seed(step_seed(seed, done, world.process_index))
            losses = {}
            for player, optimizer in zip(players, optimizers):
                with _alone(player, players):
                    losses |= _update(player, optimizer, pieces, done, steps, precision, world, watch)
            done += 1
            due = done == steps or (every is not None and done % every == 0)
            if due or done % LOOK_EVERY == 0:
                watch.look()
            if due:
                keep(done, seconds + time.perf_counter() - start)
                kept = done
            seconds += time.perf_counter() - start
            try:
                yield Progress(done, steps, seconds, losses)
            except GeneratorExit:  # the caller leaves the loop; between two updates the state is consistent
                if kept < done:
                    watch.look()
                    keep(done, seconds)
                raise

    return updates(done, seconds)


def _check(players, steps, seed, precision, checkpoint, every, resume, parts) -> None:
    names = [player.name for player in players]
    for ok, complaint in (
        (len(set(names)) == len(names) > 0, f"players need different names, not {names}"),
        (not any("/" in name for name in names), f"names of players have no slash: {names}"),
        (precision in ("no", "bf16"), f"precision must be no or bf16, not {precision!r}"),
        (steps >= 1, f"steps must be at least 1, not {steps}"),
        (seed >= 0, f"seed must be at least 0, not {seed}"),
        (parts >= 1, f"parts must be at least 1, not {parts}"),
        (every is None or every >= 1, f"every must be at least 1, not {every}"),
        (checkpoint is not None or not (resume or every), "resume and every need a checkpoint file"),
        (all(p.ema is None or 0 <= p.ema < 1 for p in players), "ema must be at least 0 and below 1"),
        (all(p.clip is None or p.clip > 0 for p in players), "clip must be above 0"),
    ):
        if not ok:
            raise UserError(complaint)


def _prepared(player: Player, world: PartialState) -> AdamW:
    """The player's optimizer; its network and average are put on the device."""
    player.module.to(world.device)
    parameters = [p for p in player.module.parameters() if p.requires_grad]
    player.averaged = None
    if player.ema is not None:
        player.averaged = AveragedModel(player.module).requires_grad_(False).eval()
    fused = world.device.type in ("cpu", "cuda")  # one kernel for all parameters
    return AdamW(parameters, player.lr, player.betas, weight_decay=player.weight_decay, fused=fused)


def _update(player, optimizer, pieces, step, steps, precision, world, watch) -> dict[str, Tensor]:
    """One update of one player. Returns its losses, averaged over the processes."""
    player.module.train()  # the caller may have looked at pictures in between
    optimizer.zero_grad()

    # Losses and their gradient: each piece of the batch counts by its share of the items
    values = 0
    for piece, share in pieces:
        with torch.autocast(world.device.type, torch.bfloat16, enabled=precision == "bf16"):
            result = player.loss(piece)
        loss, logs = result if isinstance(result, tuple) else (result, {})
        (loss * share).backward()
        names = [player.name, *(f"{player.name}/{key}" for key in logs)]
        values = values + share * torch.stack([v.detach().float().reshape(()) for v in (loss, *logs.values())])
    values = mean(values, world)
    parameters = optimizer.param_groups[0]["params"]
    average_gradients(parameters, world)
    norm = clip_grad_norm_(parameters, math.inf if player.clip is None else player.clip)
    watch.add(player.name, step, values[0], norm)

    # Step
    optimizer.param_groups[0]["lr"] = player.rate(step, steps)
    optimizer.step()
    alike(player.module.buffers(), world)
    if player.averaged is not None:
        player.averaged.multi_avg_fn = get_ema_multi_avg_fn(min(player.ema, (1 + step) / (10 + step)))
        player.averaged.update_parameters(player.module)
    return dict(zip(names, values))


class _Watch:
    """Finds the first loss or gradient that is not finite: on a CPU at once, elsewhere a look at a time."""

    def __init__(self, seed: int, world: PartialState):
        self.seed, self.world = seed, world
        self.unseen: list[tuple[str, int]] = []
        self.values: list[Tensor] = []

    def add(self, name: str, step: int, loss: Tensor, norm: Tensor) -> None:
        self.unseen.append((name, step))
        self.values.append(torch.stack([loss, norm.float()]))
        if self.world.device.type == "cpu":
            self.look()

    def look(self) -> None:
        found = torch.stack(self.values).tolist() if self.values else []
        for (name, step), (loss, norm) in zip(self.unseen, found):
            what, value = ("gradient", norm) if math.isfinite(loss) else ("loss", loss)
            if not math.isfinite(value):
                seed = step_seed(self.seed, step, self.world.process_index)
                raise TrainingError(
                    f"the {what} of {name!r} is {value} at step {step} (seed {self.seed}): batches({step}) "
                    f"begins with that batch, torch.manual_seed({seed}) gives its random numbers"
                )
        self.unseen, self.values = [], []


@contextmanager
def _alone(player: Player, players: Sequence[Player]) -> Iterator[None]:
    """While one player is updated, the others' parameters collect no gradients: half the work for a GAN."""
    own = {id(p) for p in player.module.parameters()}
    others = [
        p for other in players for p in other.module.parameters() if p.requires_grad and id(p) not in own
    ]
    try:
        for p in others:
            p.requires_grad_(False)
        yield
    finally:
        for p in others:
            p.requires_grad_(True)


# Checkpoints


def _tensors(players: Sequence[Player], optimizers: Sequence[AdamW]) -> dict[str, Tensor]:
    """All that a training has learnt, as player/module/..., player/average/..., player/optimizer/..."""
    tensors = {}
    for player, optimizer in zip(players, optimizers):
        for part, module in (("module", player.module), ("average", player.averaged)):
            if module is not None:
                tensors |= {
                    f"{player.name}/{part}/{key}": value for key, value in module.state_dict().items()
                }
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"{player.name}/optimizer/{index}/{key}": value for key, value in state.items()}
    return tensors


def _resumed(path, players, optimizers, record, steps) -> tuple[int, float]:
    """Fill players and optimizers from a checkpoint. Returns the updates done and their seconds."""
    tensors, meta = files.load(path)
    for key, value in record.items():
        if meta.get(key) != value:
            raise UserError(
                f"{path} does not continue this training: its {key} is {meta.get(key)!r}, not {value!r}"
            )
    if meta["step"] > steps:
        raise UserError(f"{path} is at step {meta['step']}, beyond the {steps} steps asked for")
    for player, optimizer in zip(players, optimizers):
        parts: dict[str, dict[str, Tensor]] = {"module": {}, "average": {}, "optimizer": {}}
        for key, value in tensors.items():
            if key.startswith(f"{player.name}/"):
                part, rest = key.removeprefix(f"{player.name}/").split("/", 1)
                parts[part][rest] = value
        files.restore(player.module, parts["module"], path)
        if (player.averaged is None) == bool(parts["average"]):
            raise UserError(f"{path} does not continue this training: only one of them averages weights")
        if player.averaged is not None:
            files.restore(player.averaged, parts["average"], path)
        _restore_optimizer(optimizer, parts["optimizer"], path)
    return meta["step"], meta["seconds"]


def _restore_optimizer(optimizer: AdamW, tensors: Mapping[str, Tensor], path: Path) -> None:
    parameters = optimizer.param_groups[0]["params"]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, entry = key.split("/")
        p = parameters[int(index)] if int(index) < len(parameters) else None
        if p is None or (entry != "step" and value.shape != p.shape):
            raise UserError(
                f"{path} does not fit the model: the optimizer's entry {key!r} belongs to another one"
            )
        # The fused update walks through memory: moments must be laid out as their parameter (channels last).
        state.setdefault(int(index), {})[entry] = (
            value if entry == "step" else torch.empty_like(p.data).copy_(value)
        )
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
