"""What a notebook stands on: checked parameters, profiles, short trainings."""

import math

import pytest
import torch

from course import UserError, chapter

GOOD = {"profile": "quick", "dataset": "glyphs", "seed": 0}
ALLOWED = {"dataset": ("glyphs", "digits"), "seed": range(10)}


def test_good_parameters_pass_beside_what_a_notebook_holds_anyway():
    chapter.parameters({**GOOD, "In": [], "Out": {}, "_i": "x", "math": math, "exit": exit}, **ALLOWED)


@pytest.mark.parametrize(
    "change, complaint",
    [
        ({"datset": "digits"}, "unknown parameter 'datset'; this chapter has: dataset, profile, seed"),
        ({"dataset": "mnits"}, "parameter dataset must be one of glyphs, digits, not 'mnits'"),
        ({"profile": "fast"}, "parameter profile must be one of smoke, quick, full, not 'fast'"),
        ({"seed": 10}, "parameter seed must be a whole number from 0 to 9, not 10"),
        ({"seed": 1.0}, "parameter seed must be a whole number"),
        ({"seed": True}, "parameter seed must be a whole number"),
    ],
)
def test_a_wrong_parameter_is_named_with_the_choices(change, complaint):
    with pytest.raises(UserError, match=complaint):
        chapter.parameters({**GOOD, **change}, **ALLOWED)


def test_a_missing_parameter_is_named():
    with pytest.raises(UserError, match="'seed' is missing"):
        chapter.parameters({"profile": "quick", "dataset": "glyphs"}, **ALLOWED)


def test_any_value_of_a_type_may_be_allowed():
    chapter.parameters({**GOOD, "caption": "a red circle"}, **ALLOWED, caption=str)
    with pytest.raises(UserError, match="must be of type str"):
        chapter.parameters({**GOOD, "caption": 3}, **ALLOWED, caption=str)


def test_pick_chooses_by_profile():
    assert [chapter.pick(profile, smoke=1, quick=2, full=3) for profile in chapter.PROFILES] == [1, 2, 3]
    with pytest.raises(UserError, match="unknown profile"):
        chapter.pick("fast", smoke=1, quick=2, full=3)


def test_train_gives_a_model_ready_for_use_and_a_loss_for_each_update():
    model, losses = chapter.train("autoencoder", "quick", dataset="digits", dim=2, width=8, steps=3, seed=1)
    assert not model.training and len(losses) == 3
    assert set(losses[0]) == {"autoencoder", "autoencoder/error", "autoencoder/bottleneck"}
    again, _ = chapter.train("autoencoder", "quick", dataset="digits", dim=2, width=8, steps=3, seed=1)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), again.parameters()))


def test_train_takes_the_recipe_s_profile_of_the_same_name(monkeypatch):
    from course.train import recipes

    home, seen = recipes.get("autoencoder"), []
    build = home.build
    monkeypatch.setattr(home, "build", lambda chosen, model: seen.append(chosen) or build(chosen, model))
    for profile in chapter.PROFILES:
        chapter.train("autoencoder", profile, dataset="digits", width=8, steps=1)
    assert [chosen.batch for chosen in seen] == [home.PROFILES[p].batch for p in chapter.PROFILES]
    assert len({chosen.batch for chosen in seen}) == 3
    with pytest.raises(UserError, match="unknown profile 'fast'"):
        chapter.train("autoencoder", "fast")


def test_train_names_a_wrong_setting():
    with pytest.raises(UserError, match="unknown setting 'stepz'"):
        chapter.train("autoencoder", "quick", stepz=3)


def test_report_shows_the_value_beside_the_page_s_range(capsys):
    chapter.report("PSNR", 31.24567, 20, 22, "dB")
    chapter.report("ratio", 0.5, None, 1)
    first, second = capsys.readouterr().out.splitlines()
    assert first == "PSNR: 31.25 dB (this page's own run: 20 .. 22)"
    assert second == "ratio: 0.5 (this page's own run: at most 1)"
