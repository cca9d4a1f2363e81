"""Stored tables: written row by row, gone on with, never mixed; and the scripts that make them, in their trials."""

import importlib.util
import json
import os
import threading
from pathlib import Path

import pytest

from course import UserError
from course.measure import tables

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
ORIGIN = {"made_by": "python benchmarks/x.py", "dataset": "glyphs", "settings": {"samples": 5, "sides": (1, 2)}}


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """An empty folder in the place of the stored tables."""
    monkeypatch.setattr(tables, "folder", lambda: tmp_path)
    return tmp_path


def table(**changes):
    return tables.Table("x", ("steps", "eta"), **(ORIGIN | changes))


def test_rows_are_written_and_found_again(stored):
    table().store({"steps": 5, "eta": 0.5, "frechet": 1.25})
    again = table()  # as after a kill
    again.store({"steps": 5, "eta": "hat", "frechet": 2.5})
    again.store({"steps": 5, "eta": 0.5, "frechet": 3.0})  # replaces
    assert again.get(5, 0.5) == {"steps": 5, "eta": 0.5, "frechet": 3.0} and again.get(10, 0.5) is None
    found = tables.load("x")
    assert tables.names() == ("x",) and [row["frechet"] for row in found["rows"]] == [2.5, 3.0]
    meta = found["meta"]
    assert {"name", "made_by", "dataset", "settings", "commit", "hardware", "date", "seconds"} == meta.keys()
    assert meta["settings"] == {"samples": 5, "sides": [1, 2]} and " + " not in meta["hardware"]
    assert [path.name for path in stored.iterdir()] == ["x.json"]


@pytest.mark.parametrize(
    "changes",
    [{"dataset": "digits"}, {"settings": {"samples": 6}}, {"settings": ORIGIN["settings"] | {"new": 1}}],
)
def test_rows_of_other_settings_are_not_mixed_in(stored, changes):
    table().store({"steps": 5, "eta": 0})
    with pytest.raises(UserError, match="holds rows made with .* not .*: delete it"):
        table(**changes)


def test_several_writers_lose_nothing(stored):
    writers = [table() for _ in range(8)]
    threads = [threading.Thread(target=one.store, args=({"steps": n, "eta": 0},)) for n, one in enumerate(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(row["steps"] for row in tables.load("x")["rows"]) == list(range(8))


def test_a_failed_write_leaves_the_old_rows(stored):
    one = table()
    one.store({"steps": 5, "eta": 0})
    before = (stored / "x.json").read_bytes()
    with pytest.raises(ValueError):
        one.store({"steps": 6, "eta": 0, "frechet": float("nan")})
    assert (stored / "x.json").read_bytes() == before and len(os.listdir(stored)) == 1


def test_bad_files_and_names(stored):
    with pytest.raises(UserError, match="no stored table 'x'; there are: none yet"):
        tables.load("x")
    for text in ("", '{"meta": {"name": "x"', '{"meta": {}, "rows": []}', "[]", '{"meta": 1, "rows": 2}', "\xff"):
        (stored / "x.json").write_text(text, encoding="latin-1")
        with pytest.raises(UserError, match="damaged"):
            tables.load("x")
        with pytest.raises(UserError, match="damaged"):
            table()


@pytest.mark.parametrize("name", tables.names())
def test_what_is_stored_says_where_it_comes_from(name):
    found = tables.load(name)
    meta, text = found["meta"], (tables.folder() / f"{name}.json").read_text(encoding="utf-8")
    assert meta["name"] == name and found["rows"] and meta["seconds"] > 0
    assert {"commit", "hardware", "date"} <= meta.keys()
    assert (BENCHMARKS / Path(meta["made_by"].split()[1]).name).exists()
    assert len(text) < 200_000 and json.loads(text)


SCRIPTS = {
    "codebook": "gradient",
    "priors": "pixelcnn",
    "code_grid": "psnr",
    "latent_factor": "right_kind",
    "guidance": "right_everything",
    "low_rank": "'way': 'adapter'",
    "overfitting": "'updates': 2",
    "ddim_table": "Fréchet distance, without clipping",
    "denoisers": "attention",
    "time_to_quality": "is reached by ours",
    "mnist_curve": "epoch   2",
    "attention_speed": "bfloat16",
    "quantiser_speed": "100.00%",
    "sampling_speed": "identical",
}


def script(name):
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_trial_of_the_script(name, tmp_path, capsys):
    main = script(name).main
    options = ["--smoke"] if name.endswith("_speed") else ["--smoke", f"--into={tmp_path}"]
    main(options)
    assert SCRIPTS[name] in capsys.readouterr().out
    if len(options) == 1:
        return
    written = next(tmp_path.glob("*.json")).read_bytes()
    main(options)  # nothing is left to do
    assert next(tmp_path.glob("*.json")).read_bytes() == written


def test_a_curve_goes_on_in_the_middle_of_an_epoch(tmp_path, monkeypatch):
    curve, options = script("mnist_curve"), ["--smoke", f"--into={tmp_path}"]
    whole = curve.fit

    def stopped(*arguments, **more):
        updates = whole(*arguments, **more)
        yield from (next(updates) for _ in range(3))  # of two an epoch
        updates.close()

    monkeypatch.setattr(curve, "fit", stopped)
    curve.main(options)
    monkeypatch.setattr(curve, "fit", whole)
    curve.main(options)
    rows = json.loads((tmp_path / "mnist_curve.json").read_text())["rows"]
    assert [(row["epoch"], row["updates"]) for row in rows] == [(1, 2), (2, 1)]
    (tmp_path / "mnist_curve.json").unlink()
    with pytest.raises(UserError, match="do not belong together"):
        curve.main(options)


def test_cells_go_on_where_they_were_stopped(tmp_path, monkeypatch, capsys):
    cells, options = script("ddim_table"), ["--smoke", f"--into={tmp_path}"]
    draw, calls = cells.draw, []

    def stopped(*arguments):
        calls.append(arguments)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return draw(*arguments)

    monkeypatch.setattr(cells, "draw", stopped)
    with pytest.raises(KeyboardInterrupt):
        cells.main(options)
    assert len(json.loads((tmp_path / "ddim.json").read_text())["rows"]) == 3
    cells.main(options)
    assert len(calls) == 4 + 5 and "5 cells to fill" in capsys.readouterr().out
