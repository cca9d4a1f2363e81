"""Change the repository's public address wherever it stands: what `make address URL=...` does.

The setting is [project.urls] Repository in pyproject.toml. README, CITATION.cff, the book's configuration,
its pages and the notebooks hold copies, because a badge or a set-up cell must work before anything is
installed.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
COPIES = (
    "pyproject.toml",
    "README.md",
    "CITATION.cff",
    "_config.yml",
    "book/*.md",
    "notebooks/*.ipynb",
    "tests/notebooks/setup_cell.txt",
)


def current() -> str:
    """The address that pyproject.toml states."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(r'^Repository = "(.+)"$', project, re.MULTILINE)
    if not found:
        sys.exit('pyproject.toml has no line Repository = "https://..." under [project.urls]')
    return found[1]


def files() -> list[Path]:
    """Every file that holds the address."""
    return sorted(path for pattern in COPIES for path in ROOT.glob(pattern))


def main(address: str) -> None:
    """Replace owner/name, which is what badges and links to other services share with the address itself."""
    if not re.fullmatch(r"https://github\.com/[\w.-]+/[\w.-]+(?<!\.git)", address):
        sys.exit(f"an address looks like https://github.com/owner/name, not {address!r}")
    old, new = (url.removeprefix("https://github.com/") for url in (current(), address))
    for path in files():
        text = path.read_text(encoding="utf-8")
        if old in text:
            path.write_text(text.replace(old, new), encoding="utf-8")
            print(f"{path.relative_to(ROOT)}: {text.count(old)} places")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "")
