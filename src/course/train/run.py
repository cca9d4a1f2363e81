"""A recipe with a profile, from its first step to the result file."""

from __future__ import annotations

import datetime
import json
import os
import platform
import signal
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.utils import save_image

from course import UserError
from course.train import checkpoint, recipes
from course.train.fit import Progress, fit
from course.train.processes import surroundings
from course.train.settings import override
from course.train.weights import check_name

LOOKS = 10  # times that pictures are drawn on the way


def run(
    recipe: str,
    profile: str = "quick",
    *,
    overrides: Iterable[str] = (),
    name: str | None = None,
    out: str | Path = "runs",
    resume: bool = False,
    watch: Callable[[Iterable[Progress]], Iterable[Progress]] = iter,
) -> Path:
    """Train a recipe's model, measure it, and write ``out/name-profile/name.safetensors``.

    A checkpoint beside the result is written fifty times over the run, and when Ctrl-C or a termination
    signal stops it; ``resume`` goes on from there.  Where a recipe shows pictures on the way, ten are written.
    What is measured is the model as it is written, rounded to float16.

    Args:
        recipe: name of a recipe.
        profile: one of its profiles.
        overrides: settings to change, as ``key=value``.
        name: of the result; the recipe's own if None.
        out: folder for all results.
        resume: go on from the checkpoint; with more steps than it was made with, the learning rate goes on where a
            training of so many would be.
        watch: wraps the progress of the training, for a progress bar.

    Returns:
        The result file, in every process; process 0 writes it.

    Raises:
        UserError: anything asked for does not exist or is not allowed; nothing is written then.
        KeyboardInterrupt: stopped by a signal, after writing the checkpoint.
    """
    home = recipes.get(recipe)
    if profile not in home.PROFILES:
        raise UserError(f"unknown profile {profile!r}; {recipe} has: {', '.join(home.PROFILES)}")
    settings = override(home.PROFILES[profile], overrides)
    name = check_name(recipe if name is None else name)
    folder = Path(out) / f"{name}-{profile}"
    _demand_writable(folder)
    origin = json.loads(json.dumps({"recipe": recipe, "profile": profile, "settings": asdict(settings)}))
    unfinished = folder / "checkpoint.safetensors"
    if resume:
        _demand_same(unfinished, origin)

    # Build
    torch.manual_seed(settings.seed)  # the weights to start from
    model = home.model(settings)
    task = home.build(settings, model)
    player = next((player for player in task.players if player.module is model), None)
    if player is None:
        raise TypeError(f"{recipe}.build(settings, model) must make that model one of its players' modules")

    # Train
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write into {folder}: {error.strerror}") from None
    updates = fit(
        task.players,
        task.batches,
        settings.steps,
        seed=settings.seed,
        precision=getattr(settings, "precision", "no"),  # settings that a recipe may have
        parts=getattr(settings, "parts", 1),
        checkpoint=unfinished,
        every=max(1, settings.steps // 50),
        resume=resume,
        meta=origin,
    )
    looks = max(1, settings.steps // LOOKS)
    with _patience() as stopped:
        for progress in watch(updates):
            if stopped:
                updates.close()  # writes the checkpoint
                raise KeyboardInterrupt
            if task.show and progress.step % looks == 0 and surroundings().is_main_process:
                path = folder / f"{name}-{progress.step:06}.png"
                save_image(task.show(player.trained.eval()), path, normalize=True, value_range=(-1, 1))

    # Measure and write
    result = folder / f"{name}.safetensors"
    if surroundings().is_main_process:
        trained = player.trained.cpu().eval()
        tensors = rounded(trained)
        checkpoint.restore(trained, tensors, result)
        torch.manual_seed(settings.seed)
        metrics = {key: float(value) for key, value in task.measure(trained).items()}
        meta = {
            "kind": "weights",
            "name": name,
            **origin,
            "dataset": settings.dataset,
            "commit": commit(),
            "steps": settings.steps,
            "hardware": hardware(),
            "seconds": round(checkpoint.describe(unfinished)["seconds"], 1),
            "metrics": metrics,
            "date": datetime.date.today().isoformat(),
            "parameters": sum(p.numel() for p in trained.parameters()),
        }
        checkpoint.save(result, tensors, meta)
    return result


def rounded(model: nn.Module) -> dict[str, Tensor]:
    """A model's tensors, floating-point ones as float16 unless that overflows."""
    tensors = {}
    for key, value in model.state_dict().items():
        half = value.half() if value.is_floating_point() else value
        tensors[key] = half if torch.isfinite(half).all() else value
    return tensors


def commit() -> str:
    """The git revision of this package's source, with ``-dirty`` if its code was changed since; else "unknown".

    A stored table or a weights file that is about to be made again is no change of the code.
    """
    here = Path(__file__).parents[1]
    code = ["HEAD", "--", ".", ":(exclude)tables", ":(exclude)weights"]

    def ask(*words: str) -> subprocess.CompletedProcess:
        return subprocess.run(["git", *words], cwd=here, capture_output=True, text=True)

    try:
        # Installed in somebody else's repository, this file is not one of theirs.
        ask("ls-files", "--error-unmatch", __file__).check_returncode()
        found = ask("rev-parse", "--short=12", "HEAD")
        found.check_returncode()
        return found.stdout.strip() + ("-dirty" if ask("diff", "--quiet", *code).returncode else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def hardware() -> str:
    """What the training runs on: the GPU, or the CPU with its number of cores, and how many processes."""
    world = surroundings()
    if world.device.type == "cuda":
        text = torch.cuda.get_device_name(world.device)
    else:
        text = f"{_cpu()}, {os.cpu_count()} cores"
        text = text if world.device.type == "cpu" else f"{world.device.type} of {text}"
    return text if world.num_processes == 1 else f"{text}, {world.num_processes} processes"


def _cpu() -> str:
    table = Path("/proc/cpuinfo")  # elsewhere than on Linux the platform module knows the name
    lines = table.read_text().splitlines() if table.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def _demand_writable(folder: Path) -> None:
    """Complain before the work, not after it, and without leaving an empty folder."""
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"cannot write into {folder}: {existing} is no folder that may be written to")


def _demand_same(path: Path, origin: dict[str, Any]) -> None:
    """Resume only what was asked for then: a checkpoint of the same recipe, profile and settings.

    Only the number of steps may be another one, to train on for longer; `fit` refuses one that is already passed.
    """
    if not path.exists():
        raise UserError(f"nothing to resume: there is no {path}")
    meta = checkpoint.describe(path)
    old, new = (
        {"recipe": m.get("recipe"), "profile": m.get("profile"), **m.get("settings", {})}
        for m in (meta, origin)
    )
    for key in {**new, **old}:
        if key != "steps" and old.get(key) != new.get(key):
            raise UserError(
                f"cannot resume {path}: it was made with {key}={old.get(key)}, not {new.get(key)}"
            )


@contextmanager
def _patience() -> Iterator[list[int]]:
    """Collects the first stop signal in a list, so that an update is not torn apart; the second one kills."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # only the main thread gets signals
        yield received
        return

    def note(number: int, frame: Any) -> None:
        received.append(number)
        signal.signal(number, before[number])

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
