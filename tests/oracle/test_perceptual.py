"""The perceptual distance against torch-fidelity's LPIPS on VGG-16, both with the same random weights."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torchvision.models.vgg import cfgs, make_layers

from course.models.perceptual import VGG_FILES, vgg

CHANNELS = (64, 128, 256, 512, 512)


@pytest.fixture
def pair(tmp_path, monkeypatch):
    """Ours and theirs, with weights from a seed in place of the published files."""
    import torch_fidelity.sample_similarity_lpips as lpips

    torch.manual_seed(0)
    network = make_layers(cfgs["D"])
    for layer in network:
        if isinstance(layer, nn.Conv2d):  # so that no layer fades out or explodes
            nn.init.kaiming_normal_(layer.weight)
            nn.init.normal_(layer.bias, std=0.1)
    linear = {f"lin{stage}.model.1.weight": torch.rand(1, width, 1, 1) for stage, width in enumerate(CHANNELS)}
    monkeypatch.setattr(lpips, "load_state_dict_from_url", lambda *arguments, **options: linear)
    monkeypatch.setattr(lpips, "torchvision_load_pretrained_vgg16", lambda: SimpleNamespace(features=network))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    for name in VGG_FILES:
        (tmp_path / "checkpoints" / name).touch()
    return vgg(), lpips.SampleSimilarityLPIPS("theirs")


@torch.no_grad()
def test_the_distance_on_vgg_is_lpips(pair):
    ours, theirs = pair
    x, y = torch.rand(3, 3, 32, 48) * 2 - 1, torch.rand(3, 3, 32, 48) * 2 - 1
    y[2] = x[2] + 0.05 * y[2]
    reference = theirs((x + 1) * 127.5, (y + 1) * 127.5).flatten()  # theirs take 0 to 255
    # the same 13 layers in float32; the last sums are taken in another order
    assert reference.min() > 0.001 and torch.allclose(ours(x, y), reference, rtol=1e-5)
    assert ours(x, x).tolist() == [0, 0, 0]


@torch.no_grad()
def test_grey_pictures_are_shown_as_colours(pair):
    ours, _ = pair
    x, y = torch.rand(2, 1, 32, 32), torch.rand(2, 1, 32, 32)
    assert torch.equal(ours(x, y), ours(x.repeat(1, 3, 1, 1), y.repeat(1, 3, 1, 1)))
    assert [parameter for parameter in ours.parameters() if parameter.requires_grad] == []
