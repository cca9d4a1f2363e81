"""Is the change of fine-tuning of low rank? A drawing style learnt by all weights, cut to a rank, and by adapters.

    python benchmarks/low_rank.py

Fills the stored table "low_rank".  All weights of the U-Net are fine-tuned once; then each matrix's change is replaced
by its best approximation of a rank ("cut").  Beside it adapters of some ranks are trained for as many updates
("adapter").  Rows tell how often the judge sees the new style, and kind and colour as the caption says.
"""

import argparse
import tempfile
from dataclasses import replace
from functools import partial

import torch

from course.export.parts import opened
from course.measure.tables import Table
from course.train.fit import Player, fit
from course.train.processes import surroundings
from course.train.recipes import lora

WHOLE = 128  # at this rank and above nothing is cut: the widest matrices have 128 columns or rows
CUT, TRAINED = (1, 2, 4, 8, 16, 32, WHOLE), (1, 2, 4)


def cut(change, rank):
    """The best approximation of a change by a rank, kernels of convolutions taken as matrices (out, in * k * k)."""
    if change.ndim < 2:
        return change
    u, s, v = torch.linalg.svd(change.flatten(1), full_matrices=False)
    return (u[:, :rank] * s[:rank] @ v[:rank]).view_as(change)


def energy(change, rank):
    """Share of a change's squared entries that its best approximation keeps."""
    squares = torch.linalg.svdvals(change.flatten(1)) ** 2
    return (squares[:rank].sum() / squares.sum()).item()


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--into", help="folder for the table; by default that of the stored tables")
    parser.add_argument("--smoke", action="store_true", help="a trial of seconds")
    options = parser.parse_args(argv)
    steps, count, samples, cuts, trained = 600, 2000, 200, CUT, TRAINED
    if options.smoke:
        steps, count, samples, cuts, trained = 2, 8, 2, (1, WHOLE), (1,)
    settings = lora.Settings(steps=steps, count=count, batch=min(32, count), lr=1e-3)
    table = Table(
        "low_rank",
        ["way", "rank"],
        made_by="python benchmarks/low_rank.py",
        dataset="shapes",
        settings={"style": settings.style, "steps": steps, "pictures": count, "samples": samples},
        into=options.into or (tempfile.mkdtemp() if options.smoke else None),
    )
    batch = lora.load(settings, "test").batch(range(samples))

    if any(table.get("cut", rank) is None for rank in cuts):
        task, parts = lora.build(settings), opened(settings.base)
        unet = parts.pipe.to(surroundings().device).unet
        before = {key: value.clone() for key, value in unet.state_dict().items()}
        loss = partial(lora.loss, settings, parts)
        player = Player("unet", unet, loss, lr=settings.lr / 5, warmup=steps // 20, decay=True)
        for _ in fit([player], task.batches, steps, precision=settings.precision):
            pass
        unet.eval()
        change = {key: value - before[key] for key, value in unet.state_dict().items()}
        attention = [f"{name}.weight" for name in task.players[0].module.names]
        for rank in cuts:
            unet.load_state_dict({key: before[key] + cut(value, rank) for key, value in change.items()})
            kept = sum(energy(change[key], rank) for key in attention) / len(attention)
            table.store({"way": "cut", "rank": rank, "energy": kept, **lora.judged(parts, batch, seed=settings.seed)})
            print(table.get("cut", rank), flush=True)
    for rank in trained:
        if table.get("adapter", rank) is not None:
            continue
        task = lora.build(replace(settings, rank=rank))
        (player,) = task.players
        for _ in fit(task.players, task.batches, steps, precision=settings.precision):
            pass
        player.module.eval()
        row = {"way": "adapter", "rank": rank, "parameters": sum(p.numel() for p in player.module.parameters())}
        table.store(row | lora.judged(player.loss.args[1], batch, seed=settings.seed))
        print(table.get("adapter", rank), flush=True)


if __name__ == "__main__":
    main()
