"""The recipes that add to a trained model: what they say of wrong input, and what they leave alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from course import UserError, data
from course.data import captioned
from course.export.parts import opened
from course.train import checkpoint
from course.train.fit import fit
from course.train.recipes import controlnet, lora
from course.train.run import run

SMOKE = lora.PROFILES["smoke"]


@pytest.fixture
def folder(tmp_path):
    batch = data.load("shapes", size=64, styles=("rings",)).batch(range(6))
    return captioned.write(tmp_path / "set", batch["image"], batch["caption"])


def test_a_folder_of_pictures_is_learnt_from_and_the_base_model_stays(folder, tmp_path):
    said = ["dataset=captioned", f"root={folder}", "batch=4", "parts=2", "count=100"]
    path = run("lora", "smoke", overrides=said, out=tmp_path / "runs", name="mine")
    meta = checkpoint.describe(path)
    assert meta["dataset"] == "captioned" and meta["metrics"] == {} and meta["settings"]["parts"] == 2
    pictures = sorted(file.name for file in path.parent.glob("*.png"))
    assert pictures == ["mine-000001.png", "mine-000002.png"]  # drawn on the way, after each of the two updates


def test_training_changes_the_adapter_and_not_the_base_model():
    task = lora.build(SMOKE)
    adapter = task.players[0].module
    fresh = opened(SMOKE.base).pipe.unet.state_dict()
    for _ in fit(task.players, task.batches, SMOKE.steps):
        pass
    parts = task.players[0].loss.args[1]
    assert all(torch.equal(value, fresh[key]) for key, value in parts.pipe.unet.state_dict().items())
    assert any(change.lora_B.weight.any() for change in adapter.changes().values())


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"dataset": "captioned"}, "needs root="),
        ({"dataset": "captioned", "root": "nowhere"}, "is not a folder"),
        ({"base": "kl"}, "kl is no text-to-image model: it was made by the recipe 'kl', not ldm"),
        ({"base": "nobody"}, "no shipped weights 'nobody'"),
        ({"rank": 1000}, "must be 1 to 64, not 1000"),
        ({"targets": ("nothing",)}, "is called nothing"),
        ({"size": 60}, "multiples of f = 8"),
    ],
)
def test_wrong_settings_say_what_is_wrong_in_one_line(changes, message):
    with pytest.raises(UserError, match=message) as caught:
        lora.build(replace(SMOKE, **changes))
    assert "\n" not in str(caught.value)


def test_a_controlnet_changes_nothing_before_it_has_learnt_and_at_strength_zero():
    settings = controlnet.PROFILES["smoke"]
    parts, network = opened(settings.base), controlnet.model(settings).eval()
    edges = (torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(0)) < 0.1).float()
    captions = ["large red circle top left", "small blue star center"]
    alone = parts.draw(captions, steps=2)
    assert torch.equal(controlnet.controlled(parts, network, edges).draw(captions, steps=2), alone)
    with torch.no_grad():
        for parameter in network.controlnet_mid_block.parameters():
            parameter.normal_()
    assert not torch.equal(controlnet.controlled(parts, network, edges).draw(captions, steps=2), alone)
    assert torch.equal(controlnet.controlled(parts, network, edges, 0.0).draw(captions, steps=2), alone)


def test_a_decoder_for_other_latents_is_refused(tmp_path):
    with pytest.raises(UserError, match="kl has other latents than ldm: train it with start=kl"):
        opened("ldm", "kl")
    with pytest.raises(UserError, match="has a decoder of its own; leave out kl_styles"):
        opened(str(tmp_path), "kl_styles")
    drawn, again = (opened("ldm", name).draw(["red circle"], steps=2) for name in ("", "kl_styles"))
    assert 0 < (drawn - again).abs().max()  # another decoder
