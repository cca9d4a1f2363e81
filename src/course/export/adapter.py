"""Low-rank adapters as files that Diffusers' pipelines load."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from course import UserError
from course.models.lora import Adapter
from course.train import checkpoint

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

PREFIX = "unet."  # of the names of a pipeline's tensors that belong to its U-Net


def tensors(adapter: Adapter) -> dict[str, Tensor]:
    """An adapter's factors under Diffusers' names.

    A reader takes alpha for r unless told otherwise, so the factor alpha / r is multiplied into B.
    """
    found = {}
    for name, change in adapter.changes().items():
        found[f"{PREFIX}{name}.lora_A.weight"] = change.lora_A.weight.detach()
        found[f"{PREFIX}{name}.lora_B.weight"] = change.factor * change.lora_B.weight.detach()
    return found


def save(adapter: Adapter, path: str | Path) -> None:
    """Write an adapter of a U-Net as a file for ``pipe.load_lora_weights``, whole or not at all.

    Raises:
        UserError: it cannot be written.
    """
    checkpoint.save(path, tensors(adapter), {"kind": "adapter"})


def load(pipe: DiffusionPipeline, path: str | Path, name: str) -> None:
    """Let a pipeline draw with an adapter from a file, beside those that it has.

    This is ``pipe.load_lora_weights`` for the U-Net, with one clear line where the file does not fit.

    Args:
        pipe: with a U-Net.
        path: of a file by :func:`save`, or by Diffusers' or peft's own tools for the U-Net alone.
        name: of the adapter in the pipeline, for ``pipe.set_adapters``.

    Raises:
        UserError: no such file, no adapter of a U-Net, or one for another U-Net; the pipeline is unchanged.
    """
    found = checkpoint.tensors(path)
    parts = {"lora_A.weight": 1, "lora_B.weight": 0}  # the axis that a factor shares with the layer's weight
    layers = dict(pipe.unet.named_modules())
    ranks = {}
    for key, value in found.items():
        layer, _, part = key.removeprefix(PREFIX).rpartition(".lora_")
        part = f"lora_{part}"
        if not key.startswith(PREFIX) or part not in parts or value.ndim != 2:
            raise UserError(f"{path} is no adapter of a U-Net: it holds {key!r}")
        base = getattr(layers.get(layer), "base_layer", layers.get(layer))  # peft wraps layers that have adapters
        if not isinstance(base, nn.Linear):
            raise UserError(f"{path} was made for another U-Net: this one has no linear layer {layer}")
        shared, rank = value.shape[parts[part]], value.shape[1 - parts[part]]
        wanted = base.weight.shape[parts[part]]
        if shared != wanted:
            raise UserError(f"{path} was made for another U-Net: {layer} has {wanted} channels here, {shared} there")
        if ranks.setdefault(layer, rank) != rank:
            raise UserError(f"{path} is damaged: the factors of {layer} have the ranks {ranks[layer]} and {rank}")
        other = key.replace(part, next(name for name in parts if name != part))
        if other not in found:
            raise UserError(f"{path} is damaged: it lacks {other!r}")
    if not found:
        raise UserError(f"{path} is no adapter of a U-Net: it is empty")
    # the U-Net's share of load_lora_weights, which would look for text encoders too and warn that there are none
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`")  # several adapters are what is wanted here
        pipe.load_lora_into_unet(found, network_alphas=None, unet=pipe.unet, adapter_name=name, _pipeline=pipe)
