"""The loss on MNIST, epoch by epoch, with the full U-Net and batches of 512.

    COURSE_DATA=folder python benchmarks/mnist_curve.py --epochs 20

Fills the stored table "mnist_curve".  The data come from MNIST's own files in folder/MNIST/raw, else they are
downloaded.  A run that was stopped goes on from the checkpoint beside the table's rows.
"""

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from course import UserError
from course.measure.tables import Table
from course.train import checkpoint
from course.train.fit import fit
from course.train.recipes import ddpm


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=20, help="of the whole run (default 20)")
    parser.add_argument("--batch", type=int, default=512, help="pictures an update (default 512)")
    parser.add_argument("--width", type=int, help="channels of the U-Net at the highest resolution (default 64)")
    parser.add_argument("--into", help="folder for the table; by default that of the stored tables")
    parser.add_argument("--runs", default="runs", help="folder for the checkpoint (default runs)")
    parser.add_argument("--smoke", action="store_true", help="a trial of seconds on scikit-learn's digits")
    options = parser.parse_args(argv)
    settings = replace(ddpm.PROFILES["full"], dataset="mnist", batch=options.batch)
    if options.smoke:
        options.into = options.into or tempfile.mkdtemp()
        options.epochs, options.runs = 2, options.into
        settings = replace(ddpm.PROFILES["smoke"], dataset="digits", batch=512)
    if options.width:
        settings = replace(settings, width=options.width)
    per_epoch = len(ddpm.load(settings, "train")) // settings.batch
    settings = replace(settings, steps=options.epochs * per_epoch)

    torch.manual_seed(settings.seed)
    model = ddpm.model(settings)
    table = Table(
        "mnist_curve",
        ("epoch",),
        made_by=f"python benchmarks/mnist_curve.py --epochs {options.epochs} --batch {options.batch}"
        + (f" --width {options.width}" if options.width else ""),
        dataset=settings.dataset,
        settings={
            "recipe": "ddpm",
            "epochs": options.epochs,
            "updates an epoch": per_epoch,
            "parameters": sum(p.numel() for p in model.parameters()),
            **{name: getattr(settings, name) for name in ("network", "width", "batch", "lr", "ema", "precision")},
        },
        into=options.into,
    )
    file = Path(options.runs) / "mnist_curve.safetensors"
    file.parent.mkdir(parents=True, exist_ok=True)
    done = checkpoint.describe(file)["step"] // per_epoch if file.exists() else 0
    if done != len(table.content()["rows"]):
        raise UserError(f"{table.path} and {file} do not belong together: delete both to start anew")
    task, losses = ddpm.build(settings, model), []
    for update in fit(
        task.players,
        task.batches,
        settings.steps,
        seed=settings.seed,
        precision=settings.precision,
        checkpoint=file,
        every=per_epoch,
        resume=file.exists(),
    ):
        losses.append(update.losses["denoiser"])
        if update.step % per_epoch == 0:
            row = {"epoch": update.step // per_epoch, "loss": round(sum(losses) / len(losses), 6)}
            # fewer updates than the epoch has: it was interrupted, and this is the mean of its second part
            table.store(row | {"updates": len(losses), "seconds": round(update.seconds, 1)})
            left = update.seconds / update.step * (settings.steps - update.step) / 60
            print(f"epoch {row['epoch']:3}: loss {row['loss']:.5f}, {left:.0f} minutes left", flush=True)
            losses = []


if __name__ == "__main__":
    main()
