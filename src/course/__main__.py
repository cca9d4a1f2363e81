"""The command line: ``course list | train | weights | export | results``.

A mistake is told in one line on stderr with exit status 2.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from course import UserError

if TYPE_CHECKING:
    from course.train.fit import Progress


class Parser(argparse.ArgumentParser):
    """argparse, but a mistake is one line without the usage text before it; and @FILE reads arguments from a file."""

    def __init__(self, **options: Any):
        super().__init__(**options, fromfile_prefix_chars="@")

    def convert_arg_line_to_args(self, arg_line: str) -> list[str]:
        return shlex.split(arg_line, comments=True)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see: {self.prog} --help)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit status: 0, 2 for a mistake, 130 when interrupted."""
    first = os.environ.get("RANK", "0") == "0"  # of several processes one speaks
    try:
        options = parser().parse_args(arguments)
        options.command(options)
        return 0
    except UserError as error:
        if first:
            print(f"course: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if first:
            print("course: stopped; train goes on from its checkpoint with --resume", file=sys.stderr)
        return 130


def parser() -> Parser:
    """The commands and their options."""
    top = Parser(prog="course", description="Train, list and ship the models of From Autoencoders to Sora.")
    commands = top.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)

    command = commands.add_parser("list", help="recipes with their profiles, shipped weights, data sets")
    command.set_defaults(command=show_all)

    command = commands.add_parser(
        "train",
        help="train a recipe's model and write runs/NAME-PROFILE/NAME.safetensors",
        epilog="Arguments may stand in a file, with remarks behind #: course train @FILE",
    )
    command.add_argument("recipe", help="see: course list")
    command.add_argument("--profile", default="quick", help="smoke, quick (default) or full")
    command.add_argument("--resume", action="store_true", help="go on from the checkpoint of an earlier run")
    command.add_argument(
        "--set",
        metavar="KEY=VALUE",
        nargs="+",
        action="extend",
        default=[],
        help="change settings of the profile",
    )
    command.add_argument("--name", help="name of the result (default: the recipe's)")
    command.add_argument("--out", default="runs", help="folder for results (default: runs)")
    command.set_defaults(command=train)

    command = commands.add_parser("weights", help="list shipped weights, describe one, or ship a result")
    which = command.add_mutually_exclusive_group()
    which.add_argument("name", nargs="?", help="describe this one")
    which.add_argument("--ship", metavar="RUNFILE", help="copy a result of `course train` into the package")
    command.set_defaults(command=show_weights)

    command = commands.add_parser("export", help="write a text-to-image model as a folder for Diffusers")
    command.add_argument("name", help="shipped weights, or a result of `course train ldm` by its path")
    command.add_argument("folder", help="a new one, or an empty one")
    command.set_defaults(command=export)

    command = commands.add_parser("results", help="rewrite the book's table and figure of results")
    command.set_defaults(command=write_results)
    return top


def show_all(options: argparse.Namespace) -> None:
    """Print what there is."""
    from course import data
    from course.train import recipes, weights

    print("recipes (train with: course train NAME --profile PROFILE)")
    for name in recipes.names():
        print(f"  {name:<20} {', '.join(recipes.get(name).PROFILES)}")
    print("shipped weights")
    for name in weights.names():
        print(f"  {name}")
    print("data sets")
    for name in data.NAMES:
        print(f"  {name}")


def train(options: argparse.Namespace) -> None:
    """Train a recipe and print its metrics."""
    from course.train import checkpoint
    from course.train.run import run

    path = run(
        options.recipe,
        options.profile,
        overrides=options.set,
        name=options.name,
        out=options.out,
        resume=options.resume,
        watch=progress_bar,
    )
    if os.environ.get("RANK", "0") == "0":
        metrics = checkpoint.describe(path)["metrics"]
        print(f"{path}: {', '.join(f'{key} {value:.4g}' for key, value in metrics.items())}")


def progress_bar(updates: Iterable[Progress]) -> Iterator[Progress]:
    """A bar on stderr with the losses, in process 0."""
    from tqdm import tqdm

    bar = None
    for progress in updates:
        if bar is None:
            quiet = os.environ.get("RANK", "0") != "0"
            bar = tqdm(total=progress.steps, initial=progress.step - 1, disable=quiet, mininterval=1.0)
        if bar.update():  # true when the bar is drawn anew: only then are losses fetched from the device
            bar.set_postfix_str(summary(progress), refresh=False)
        yield progress
    if bar is not None:
        bar.set_postfix_str(summary(progress))
        bar.close()


def summary(progress: Progress) -> str:
    """The players' losses, without what else they report: a bar has one line."""
    return ", ".join(f"{name} {value:.4g}" for name, value in progress.losses.items() if "/" not in name)


def show_weights(options: argparse.Namespace) -> None:
    """Print the shipped weights, or the origin of one; or ship a file."""
    from course.train import weights

    if options.ship:
        print(weights.ship(options.ship))
        return
    if options.name:
        for key, value in weights.info(options.name).items():
            print(f"{key:<12} {value}")
        return
    for name in weights.names():
        meta = weights.info(name)
        size = (weights.folder() / f"{name}.safetensors").stat().st_size / 1e6
        count = f"{meta['parameters']:,} parameters"
        print(f"{name:<20} {size:5.2f} MB  {meta['recipe']} on {meta['dataset']}, {count}")


def export(options: argparse.Namespace) -> None:
    """Write a model as a folder that `StableDiffusionPipeline.from_pretrained` reads."""
    from course.export import pipeline

    folder = pipeline.export(options.name, options.folder)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6
    print(f"{folder}: {pipeline.CLASS}, {size:.1f} MB")


def write_results(options: argparse.Namespace) -> None:
    """Write the book's table of results."""
    from course.measure import results

    results.write()


if __name__ == "__main__":
    sys.exit(main())
