"""One training in several processes: each works on its slice of the batch, all stay alike.

Hugging Face accelerate finds the processes (``accelerate launch``, ``torchrun``) and the devices.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from course import UserError

if TYPE_CHECKING:
    from accelerate import PartialState


def surroundings() -> PartialState:
    """The device and the processes that there are, as Hugging Face accelerate finds them.

    ``accelerate launch --cpu`` keeps a training off the GPU.
    """
    from accelerate import PartialState  # slow to import
    from accelerate.utils import parse_flag_from_env

    # PartialState, not Accelerator: the device and the processes are what we use of it, and an Accelerator
    # fixes one precision for the life of the Python process, while a chapter compares two.
    has_gpu = torch.cuda.is_available() or torch.backends.mps.is_available() or torch.xpu.is_available()
    return PartialState(cpu=not has_gpu or parse_flag_from_env("ACCELERATE_USE_CPU"))


def own_slice(batch: dict[str, Any], world: PartialState) -> dict[str, Any]:
    """This process's part of the global batch, on its device.

    Raises:
        UserError: the batch does not divide by the number of processes.
    """
    count, own = world.num_processes, {}
    for key, value in batch.items():
        if count > 1:
            if len(value) % count:
                raise UserError(
                    f"a batch of {len(value)} does not divide by {count} processes; use a multiple"
                )
            part = len(value) // count
            value = value[world.process_index * part : (world.process_index + 1) * part]
        own[key] = value.to(world.device, non_blocking=True) if isinstance(value, Tensor) else value
    return own


def split(batch: dict[str, Any], parts: int) -> list[tuple[dict[str, Any], float]]:
    """A batch in parts of equal size up to one item, each with its share of all items.

    Raises:
        UserError: more parts than items.
    """
    count = len(next(iter(batch.values())))
    if count < parts:
        raise UserError(f"a batch of {count} cannot be worked through in {parts} parts")
    ends = [count * part // parts for part in range(parts + 1)]
    return [
        ({key: value[start:end] for key, value in batch.items()}, (end - start) / count)
        for start, end in zip(ends, ends[1:])
    ]


def mean(value: Tensor, world: PartialState) -> Tensor:
    """The mean of a tensor over the processes."""
    from accelerate.utils import reduce

    return reduce(value, "mean") if world.num_processes > 1 else value


def average_gradients(parameters: Sequence[Tensor], world: PartialState) -> None:
    """Average the gradients over the processes, all in one message.

    By hand, since DistributedDataParallel averages only what went through the network's ``forward``, and a
    loss may call ``encode`` and ``decode``, or one network twice.
    """
    if world.num_processes == 1:
        return
    # A parameter unused on this slice has no gradient, and on another may have one: flags tell who has.
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flags = torch.tensor([float(p.grad is not None) for p in parameters], device=world.device)
    message = [*(gradient.flatten() for gradient in gradients), flags]
    *averages, used = mean(torch.cat(message), world).split([part.numel() for part in message])
    for p, gradient, average, flag in zip(parameters, gradients, averages, used.tolist()):
        if flag:
            p.grad = gradient.copy_(average.view(gradient.shape))


def alike(tensors: Iterable[Tensor], world: PartialState) -> None:
    """Give every process the tensors of process 0."""
    from accelerate.utils import broadcast

    if world.num_processes > 1:
        for tensor in tensors:
            tensor.copy_(broadcast(tensor.contiguous()))
