"""The results table: rows from metadata, prose kept, files found out of date."""

import json

import pytest
from PIL import Image

from course import UserError
from course.measure import results

INFO = {
    "ae": {
        "dataset": "glyphs",
        "parameters": 412_345,
        "seconds": 301.7,
        "hardware": "2 CPU cores",
        "commit": "abc123",
        "metrics": {"frechet": 12.3456, "frechet_floor": 0.1234, "psnr": 22.345, "ms_per_image": 0.0456},
    },
    "vae": {
        "dataset": "glyphs",
        "parameters": 1_412_345,
        "seconds": 61.0,
        "hardware": "2 CPU cores",
        "commit": "abc123",
        "metrics": {"frechet": 5.0, "frechet_floor": 0.05, "psnr": 20.0, "ms_per_image": 0.05},
    },
    "prior": {
        "dataset": "shapes",
        "parameters": 900,
        "seconds": 7300.0,
        "hardware": "a GPU",
        "commit": "abc123",
        "metrics": {"frechet": 3.0, "frechet_floor": 0.06, "ms_per_image": 312.4},
    },
    "judge_glyphs": {"dataset": "glyphs", "parameters": 1, "seconds": 1.0, "metrics": {"accuracy": 0.99}},
}
PAGE = f"(results)=\n# Results\n\nBefore.\n\n{results.START}\n\nold\n\n{results.END}\n\nAfter.\n"


@pytest.fixture
def info(monkeypatch):
    from course.train import weights

    info = json.loads(json.dumps(INFO))
    monkeypatch.setattr(weights, "names", lambda: tuple(sorted(info)))
    monkeypatch.setattr(weights, "info", info.__getitem__)
    models = {"ae": (1, "Autoencoder"), "vae": (2, "VAE"), "prior": (5, "VQ | PixelCNN")}
    monkeypatch.setattr(results, "MODELS", models)
    return info


@pytest.fixture
def book(tmp_path):
    (tmp_path / "results.md").write_text(PAGE, encoding="utf-8")
    return tmp_path


def test_write_then_check(info, book):
    assert len(results.check(book)) == 3
    written = results.write(book)
    assert [path.name for path in written] == ["results.json", "results.md", "results.png"]
    assert results.check(book) == []
    assert json.loads(written[0].read_text(encoding="utf-8")) == results.rows()
    before = [path.read_bytes() for path in written]
    assert [path.read_bytes() for path in results.write(book)] == before


def test_page_keeps_its_prose_and_shows_the_numbers(info, book):
    results.write(book)
    page = (book / "results.md").read_text(encoding="utf-8")
    assert page.startswith("(results)=\n# Results\n\nBefore.\n") and page.endswith("\n\nAfter.\n")
    assert "old" not in page
    lines = [line for line in page.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 3
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]
    assert cells[0][2:] == [
        "Autoencoder", "glyphs", "22.3", "12.3", "0.12", "100", "412 k", "5 min, 2 CPU cores", "0.046"
    ]  # fmt: skip
    assert cells[1][8:10] == ["1.4 M", "61 s, 2 CPU cores"]
    assert cells[2][2:] == [
        "VQ \\| PixelCNN",
        "shapes",
        "–",
        "3.00",
        "0.060",
        "50",
        "1 k",
        "2.0 h, a GPU",
        "310",
    ]


def test_changed_weights_are_noticed(info, book):
    results.write(book)
    info["vae"]["metrics"]["frechet"] = 4.0
    assert len(results.check(book)) == 3
    results.write(book)
    info["new"] = info["vae"]
    assert results.check(book) == [
        "new has a Frechet distance but no line in MODELS (course/measure/results.py)"
    ]
    del info["new"], info["prior"]
    assert "prior is in MODELS but not among the shipped weights" in results.check(book)


def test_hand_edited_and_missing_files_are_noticed(info, book):
    results.write(book)
    page = book / "results.md"
    page.write_text(page.read_text(encoding="utf-8").replace("22.3", "32.3"), encoding="utf-8")
    (book / "_static" / "results.png").unlink()
    assert [line.split()[0] for line in results.check(book)] == ["results.md", "results.png"]


def test_no_models_yet(info, book):
    info.clear()
    results.MODELS.clear()
    results.write(book)
    assert results.check(book) == []


def test_picture_is_opaque_and_labelled(info, book):
    results.write(book)
    with Image.open(book / "_static" / "results.png") as picture:
        assert picture.width == 1200
        assert picture.convert("RGBA").getchannel("A").getextrema() == (255, 255)


def test_each_point_carries_the_letter_of_its_row(info, book):
    table = results.rows()
    axis = results.figure(table).axes[0]
    letters = {text.get_text(): text.xy for text in axis.texts if len(text.get_text()) == 1}
    with_both = [row for row in table if row["frechet"] and row["floor"] and row["ms_per_image"]]
    assert with_both and len(letters) == len(with_both)
    for row in with_both:
        assert letters[row["letter"]] == (row["ms_per_image"], row["frechet"] / row["floor"])
        assert f"| {row['letter']} |" in results.markdown(table)
    x_low, x_high = axis.get_xlim()
    assert all(x_low <= row["ms_per_image"] <= x_high for row in with_both)


def test_refuses(info, book, tmp_path):
    with pytest.raises(UserError, match="clone"):
        results.write(tmp_path / "nowhere")
    (book / "results.md").write_text("# Results\n", encoding="utf-8")
    with pytest.raises(UserError, match="must hold the lines"):
        results.write(book)
    assert not (book / "results.json").exists()


def test_unwritable_folder(info, book):
    (book / "results.json").mkdir()  # cannot be written, whoever runs the test
    with pytest.raises(UserError, match="cannot write .*results.json"):
        results.write(book)


def test_the_books_own_files_are_up_to_date():
    assert results.check() == []
