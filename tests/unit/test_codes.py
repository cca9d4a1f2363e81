"""Stage one for stage two: codes of pictures, pictures of codes, and what is computed once; the shipped VQ-VAE."""

import shutil
from dataclasses import replace

import pytest
import torch

from course import UserError, data, measure
from course.models.quantise import perplexity
from course.train import codes, weights
from course.train.codes import StageOne, stage_one, stored
from course.train.recipes import vqvae


@pytest.fixture(scope="module")
def first():
    return stage_one("vqvae")


@pytest.fixture(scope="module")
def glyphs():
    return data.load("glyphs", "test")


def small(**changes):
    """An untrained stage one."""
    settings = replace(vqvae.PROFILES["smoke"], **changes)
    torch.manual_seed(0)
    model = vqvae.model(settings).eval().requires_grad_(False)
    return StageOne(model, settings, vqvae.load(settings, "test")[0].size)


def refused(message, call, *arguments):
    with pytest.raises(UserError, match=message) as error:
        call(*arguments)
    assert "\n" not in str(error.value)


# Stage one


def test_pictures_become_codes_and_codes_pictures(first, glyphs):
    assert first.size == (28, 28) and first.grid == (7, 7) and first.entries == 128
    x = glyphs.batch(range(30))["image"]
    found = first.encode(x)
    assert found.shape == (30, 7, 7) and found.dtype == torch.int64 and 0 <= found.min() and found.max() < 128
    made = first.decode(found)
    assert made.shape == x.shape and made.abs().max() <= 1
    encoded = first.model.encode(x)
    assert torch.equal(found, encoded.codes)
    # z is h + (e - h), two roundings away from the entry that `decode` looks up; the decoder carries that on
    assert torch.allclose(made, first.model.decode(encoded.z).clamp(-1, 1), atol=1e-4)
    assert not made.requires_grad and not first.model.training


@pytest.mark.parametrize("batch", [1, 7, 1000])
def test_how_many_are_encoded_at_once_does_not_matter(first, glyphs, monkeypatch, batch):
    x = glyphs.batch(range(15))["image"]
    whole = first.encode(x)
    made = first.decode(whole)
    monkeypatch.setattr(codes, "BATCH", batch)
    # other batches may round in other ways; no code of these is so near to two entries
    assert torch.equal(first.encode(x), whole)
    assert torch.allclose(first.decode(whole), made, atol=1e-4)


def test_a_map_of_any_size_is_decoded(first):
    made = first.decode(torch.randint(0, 128, (2, 7, 14)))
    assert made.shape == (2, 1, 28, 56)
    refused(r"0 \.\. 127, not", first.decode, torch.full((1, 7, 7), 128))


def test_pictures_whose_sides_do_not_divide_are_refused(first):
    # the convolutions would round down, and the decoded picture be smaller than the original
    refused(r"multiples of f = 4, not \(30, 28\)", first.encode, torch.zeros(1, 1, 30, 28))


def test_maps_are_decoded_to_their_labels():
    one = small(dataset="shapes", content="mask", size=32, halvings=3)
    assert one.grid == (4, 4) and one.entries == 16
    batch = data.load("shapes", "test").batch(range(3))
    found = one.encode(vqvae.network_input(one.settings, batch))
    made = one.decode(found)
    assert found.shape == (3, 4, 4) and made.shape == (3, 32, 32) and made.dtype == torch.int64
    logits = one.model.decode(one.model.bottleneck.lookup(found))
    assert logits.shape == (3, vqvae.LABELS, 32, 32) and torch.equal(made, logits.argmax(1))


def test_pixels_are_codes_without_a_model(glyphs):
    grey, x = stage_one("pixels"), glyphs.batch(range(4))["image"]
    found = grey.encode(x)
    assert grey.grid == (28, 28) and grey.entries == 16 and found.shape == (4, 28, 28)
    # 16 levels between -1 and 1 are 2 / 15 apart; a rounding in float32 more
    assert (grey.decode(found) - x).abs().max() <= 1 / 15 + 1e-6
    assert torch.equal(grey.encode(grey.decode(found)), found)


def test_a_file_serves_as_well_as_a_name(first, tmp_path):
    path = tmp_path / "mine.safetensors"
    shutil.copy(weights.folder() / "vqvae.safetensors", path)
    for name in (path, weights.folder() / "vqvae.safetensors"):
        other = stage_one(str(name))
        assert other.settings == first.settings and other.size == first.size
        assert all(torch.equal(*both) for both in zip(other.model.parameters(), first.model.parameters()))


@pytest.mark.parametrize("name", ["vae", "ddpm", "judge_glyphs"])
def test_models_without_a_codebook_are_refused(name):
    refused(f"{name} has no codebook: it was made by the recipe", stage_one, name)


def test_models_that_do_not_exist_are_refused(tmp_path):
    refused("no shipped weights 'nobody'", stage_one, "nobody")
    refused("no such file", stage_one, str(tmp_path / "nobody.safetensors"))
    (tmp_path / "text.safetensors").write_text("no tensors at all")
    refused("text.safetensors", stage_one, str(tmp_path / "text.safetensors"))


# What is computed once


@pytest.mark.parametrize("batch, count", [(7, 20), (10, 20), (250, 3)])
def test_what_is_stored_is_what_direct_encoding_gives(first, glyphs, monkeypatch, batch, count):
    direct = first.encode(glyphs.batch(range(count))["image"])
    monkeypatch.setattr(codes, "BATCH", batch)
    columns = {"codes": lambda batch: first.encode(batch["image"]), "label": lambda batch: batch["label"]}
    kept = stored(glyphs, count, columns)
    assert len(kept) == count and kept.classes == glyphs.classes and kept.name == "glyphs" and kept.split == "test"
    rows = [count - 1, 0, 2, 2]
    found = kept.batch(rows)
    assert set(found) == {"codes", "label"} and found["codes"].dtype == found["label"].dtype == torch.int64
    assert torch.equal(found["codes"], direct[rows])
    assert torch.equal(found["label"], glyphs.batch(rows)["label"])
    assert kept.tensors["codes"].dtype == torch.int16


def test_stored_codes_are_walked_through_like_any_data_set(glyphs):
    kept = stored(glyphs, 12, {"label": lambda batch: batch["label"]})
    walk = data.batches(kept, 4, seed=1)
    assert sorted(sum((next(walk)["label"].tolist() for _ in range(3)), [])) == sorted(
        glyphs.batch(range(12))["label"].tolist()
    )
    refused("no item 12", kept.batch, [12])


@pytest.mark.parametrize("count", [0, -1, 5000])
def test_more_than_there_is_cannot_be_stored(glyphs, count):
    refused("count must be a whole number, 1 to 4000", stored, glyphs, count, {})


# The shipped VQ-VAE


def test_the_shipped_vqvae_is_faithful_and_uses_its_codebook(first, glyphs):
    x = glyphs.batch(range(500))["image"]
    found = first.encode(x)
    assert measure.psnr(x, first.decode(found)) >= 30
    assert found.unique().numel() >= 0.9 * first.entries
    assert perplexity(found, first.entries) >= 0.5 * first.entries  # and no few of them do all the work
