"""Run every test, part by part, and print how long each part took: what `make test` does.

A part that fails does not stop the later ones. The exit status is 1 if any part failed.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
PARTS = {
    "style": [sys.executable, "-m", "ruff", "check", "--no-cache", "."],
    "fast tests": [*PYTEST, "--durations=5"],
    "notebooks": [*PYTEST, "tests/notebooks"],
    "book and browser": [*PYTEST, "-rs", "tests/book"],
}


def main() -> int:
    """Run the parts named on the command line (all by default)."""
    names = sys.argv[1:] or list(PARTS)
    rows = []
    for name in names:
        print(f"\n== {name}: {' '.join(PARTS[name][2:])}", flush=True)
        start = time.monotonic()
        status = subprocess.run(PARTS[name], cwd=ROOT).returncode
        rows.append((name, time.monotonic() - start, status))
    print(f"\n{'part':<20}{'seconds':>8}  result")
    for name, seconds, status in rows:
        print(f"{name:<20}{seconds:>8.0f}  {'passed' if status == 0 else f'FAILED (status {status})'}")
    print(f"{'together':<20}{sum(row[1] for row in rows):>8.0f}")
    return int(any(status for *_, status in rows))


if __name__ == "__main__":
    sys.exit(main())
