"""Stored tables: numbers that take hours to compute, with where they come from.

The scripts in benchmarks/ make them with `Table`, row by row; the chapters read them with `load`.
"""

from __future__ import annotations

import datetime
import json
import os
import time
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from course import UserError


def folder() -> Path:
    """Where the stored tables are."""
    return Path(str(files("course"))) / "tables"


def names() -> tuple[str, ...]:
    """Names of the stored tables."""
    return tuple(sorted(path.stem for path in folder().glob("*.json")))


def load(name: str) -> dict[str, Any]:
    """A stored table: "rows", a list of dicts, and "meta", which tells where they come from.

    meta: name, made_by (the command), dataset, settings (whatever decides the numbers), commit, hardware, date (of the
    last row) and seconds (of all work on it, measuring included).  Raises UserError: unknown name or damaged file.
    """
    if name not in names():
        raise UserError(f"no stored table {name!r}; there are: {', '.join(names()) or 'none yet'}")
    return _read(folder() / f"{name}.json")


class Table:
    """A table in the making, written after each row: a script goes on where it was stopped, several can share a table.

    name: of the table. keys: the columns that tell a row from all others. made_by: the command. dataset: what the
    numbers are about. settings: whatever else decides them, as JSON can hold it. into: folder of the file, by default
    that of the stored tables.  Raises UserError: the file is damaged, or its rows were made with other settings.
    """

    def __init__(self, name: str, keys: Sequence[str], *, made_by: str, dataset: str, settings: Mapping, into=None):
        self.path, self.keys, self.clock = Path(into or folder()) / f"{name}.json", tuple(keys), time.perf_counter()
        meta = {"name": name, "made_by": made_by, "dataset": dataset, "settings": dict(settings)}
        self.meta = json.loads(json.dumps(meta))  # as it will be read again: tuples are lists
        self.content()

    def content(self) -> dict[str, Any]:
        """What the file holds now, as from `load`; no rows while there is no file."""
        found = _read(self.path) if self.path.exists() else {"meta": dict(self.meta), "rows": []}
        own, other = ({"dataset": meta["dataset"], **meta["settings"]} for meta in (self.meta, found["meta"]))
        for key in {**own, **other}:
            if own.get(key) != other.get(key):
                differ = f"{key}={other.get(key)!r}, not {own.get(key)!r}"
                raise UserError(f"{self.path} holds rows made with {differ}: delete it to start anew")
        return found

    def get(self, *key: Any) -> dict[str, Any] | None:
        """The row with these values in the key columns, or None."""
        return next((row for row in self.content()["rows"] if tuple(row[each] for each in self.keys) == key), None)

    def store(self, row: Mapping[str, Any]) -> None:
        """Write a row, in place of an earlier one with the same keys; one process at a time."""
        import fcntl  # not on Windows, where tables can be read but not made

        from course.train import checkpoint, run

        self.path.parent.mkdir(parents=True, exist_ok=True)
        door = os.open(self.path.parent, os.O_RDONLY)
        fcntl.flock(door, fcntl.LOCK_EX)  # until the handle is closed, by a kill too
        try:
            meta, rows = self.content().values()
            for key, value in (("commit", run.commit()), ("hardware", run.hardware())):
                meta[key] = " + ".join(dict.fromkeys([*filter(None, meta.get(key, "").split(" + ")), value]))
            now = time.perf_counter()
            meta["date"] = datetime.date.today().isoformat()
            meta["seconds"], self.clock = round(meta.get("seconds", 0) + now - self.clock, 1), now
            rows = [each for each in rows if any(each[key] != row[key] for key in self.keys)] + [dict(row)]
            lines = ",\n".join(json.dumps(each, ensure_ascii=False, allow_nan=False) for each in rows)
            text = json.dumps(meta, indent=1, ensure_ascii=False)
            checkpoint.write(self.path, f'{{"meta": {text},\n"rows": [\n{lines}\n]}}\n'.encode())
        finally:
            os.close(door)


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if {"name", "made_by", "dataset", "settings"} <= found["meta"].keys() and isinstance(found["rows"], list):
            return {"meta": found["meta"], "rows": found["rows"]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    raise UserError(f"{path} is damaged or no stored table: delete it and make it anew")
