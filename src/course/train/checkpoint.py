"""Files of tensors: safetensors with a JSON object in the header, written whole or not at all.

Nothing is pickled, so reading a file from a stranger runs none of the stranger's code.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from course import UserError

KEY = "course"  # the entry of a safetensors header that holds our JSON


def save(path: str | Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write tensors and a JSON-able description, atomically: a reader sees the old file or the new one.

    Args:
        path: the file; its folder must exist.
        tensors: any shapes, types and devices.
        meta: whatever JSON can hold; tuples come back as lists.

    Raises:
        UserError: the file cannot be written; an earlier file of that name is untouched.
    """
    # Tied weights share memory, which safetensors refuses; a copy each is simpler than naming the ties.
    copies = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    write(path, to_bytes(copies, {KEY: json.dumps(dict(meta))}))


def write(path: str | Path, content: bytes) -> None:
    """Write bytes atomically: into a file beside the target, onto the disk, then under the target's name."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        for leftover in path.parent.glob(f".{path.name}.*.partial"):  # of processes killed while they wrote
            if time.time() - leftover.stat().st_mtime > 3600:
                leftover.unlink(missing_ok=True)
        try:
            with open(partial, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())  # else a power cut may leave the new name on an empty file
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None


def load(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors (on the CPU) and description of a file that `save` wrote.

    Raises:
        UserError: no such file; truncated; not safetensors; safetensors, but not written by this package.
    """
    with _opened(path) as file:
        meta = _meta(file, path)
        return _tensors(file), meta


def tensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors alone, of any safetensors file, by whomever. Raises what `load` raises, but the last."""
    with _opened(path) as file:
        return _tensors(file)


def describe(path: str | Path) -> dict[str, Any]:
    """The description alone, without reading the tensors. Raises what `load` raises."""
    with _opened(path) as file:
        return _meta(file, path)


def _opened(path: str | Path) -> Any:
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no such file: {path}")
    try:
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} is truncated or not a safetensors file ({reason})") from None


def _tensors(file: Any) -> dict[str, Tensor]:
    # Copies, because some versions of safetensors give views into the file, which may change.
    return {key: file.get_tensor(key).clone() for key in file.keys()}


def _meta(file: Any, path: str | Path) -> dict[str, Any]:
    try:
        meta = json.loads((file.metadata() or {})[KEY])
    except (KeyError, ValueError):
        meta = None
    if not isinstance(meta, dict):
        raise UserError(f"{path} was not written by this course: its header has no {KEY!r} entry")
    return meta


def restore(module: nn.Module, tensors: Mapping[str, Tensor], source: str | Path) -> None:
    """Copy tensors into a module, cast to the module's own type and device.

    Args:
        module: takes exactly these tensors.
        tensors: by the keys of ``module.state_dict()``.
        source: named in errors.

    Raises:
        UserError: a tensor is missing, has another shape, or is unknown; the first such key is named and the
            module is unchanged.
    """
    own = module.state_dict()
    for key, value in own.items():
        if key not in tensors:
            raise UserError(f"{source} does not fit the model: it lacks {key!r}")
        if tensors[key].shape != value.shape:
            shapes = f"{tuple(tensors[key].shape)}, the model has {tuple(value.shape)}"
            raise UserError(f"{source} does not fit the model: {key!r} has shape {shapes}")
    for key in tensors:
        if key not in own:
            raise UserError(f"{source} does not fit the model: {key!r} is unknown to it")
    with torch.no_grad():
        module.load_state_dict(tensors)
