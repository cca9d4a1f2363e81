"""The library of the book *From Autoencoders to Sora*: every piece of code that the chapters use twice.

The folders show the flow: ``data`` (what we learn from), ``models`` (what learns), ``diffusion`` (what is only
mathematics), ``train`` (how), ``measure`` (how well) and ``show`` (pictures).  Importing ``course`` itself loads
nothing heavy.
"""

from pathlib import Path

__version__ = "0.1.0"


class UserError(ValueError):
    """A mistake of the caller, told in one line: what was wrong and what is allowed."""


def address() -> str:
    """The repository's public address, the ``Repository`` entry of pyproject.toml (the only place that states it)."""
    from importlib import metadata

    try:
        urls = metadata.metadata("course").get_all("Project-URL") or []
        entries = dict(entry.split(", ", 1) for entry in urls)
        if "Repository" in entries:
            return entries["Repository"]
    except metadata.PackageNotFoundError:
        pass  # run from a checkout that is not installed: read the file that the metadata is made from
    project = Path(__file__).parents[2] / "pyproject.toml"
    for line in project.read_text().splitlines():
        if line.startswith("Repository"):
            return line.split('"')[1]
    raise UserError(f"no Repository address in {project}: add it under [project.urls]")
