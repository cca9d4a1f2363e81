"""Latents of unit variance, conditions on their grid, and the recipe that diffuses them."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from course import UserError, data
from course.data.tokens import tokenize
from course.models.autoencoder import Autoencoder, Point
from course.train.latents import LatentSpace, latent_space
from course.train.recipes import ldm

SMOKE = ldm.PROFILES["smoke"]


class Fold(nn.Module):
    """Squares of f x f pixels as channels, times a factor: an encoder whose inverse is known."""

    def __init__(self, f, factor):
        super().__init__()
        self.f, self.factor = f, factor

    def forward(self, x):
        return nn.functional.pixel_unshuffle(x, self.f) * self.factor


class Unfold(Fold):
    def forward(self, z):
        return nn.functional.pixel_shuffle(z, self.f) * self.factor


def space(f=4, std=3.0):
    return LatentSpace(Autoencoder(Fold(f, 5.0), Point(), Unfold(f, 0.2)), f, std, 3 * f * f)


def test_latents_are_divided_by_their_spread_and_decoding_undoes_it():
    x = torch.rand(3, 3, 8, 16) * 2 - 1
    z = space().encode(x)
    assert z.shape == (3, 48, 2, 4)
    assert torch.allclose(z, nn.functional.pixel_unshuffle(x, 4) * 5 / 3)
    assert torch.allclose(space().decode(z), x, atol=1e-6)
    assert space().decode(10 * z).abs().max() == 1  # pictures stay in range


def test_sizes_that_do_not_divide_by_f_are_refused():
    with pytest.raises(UserError, match=r"multiples of f = 4, not \(8, 10\)$"):
        space().encode(torch.zeros(1, 3, 8, 10))


def test_pixels_are_a_latent_space_too_and_other_weights_are_not():
    x = torch.rand(2, 3, 16, 16)
    pixels = latent_space("pixels")
    assert torch.equal(pixels.encode(x), x) and torch.equal(pixels.decode(x), x) and pixels.channels == 3
    with pytest.raises(UserError, match="made by the recipe 'vqvae', not kl"):
        latent_space("vqvae")


def test_a_low_picture_has_the_mean_of_sixteen_pixels_and_loses_nothing_on_the_way_to_the_grid():
    images = torch.rand(2, 3, 64, 64)
    small = ldm.low(images)
    assert torch.allclose(small[1, 2, 3, 5], images[1, 2, 12:16, 20:24].mean())
    cond = ldm.beside(ldm.LOW, space(8), {"low": small})
    assert cond.shape == (2, 12, 8, 8)
    assert torch.equal(nn.functional.pixel_shuffle(cond, 2), small)


def test_a_map_arrives_with_one_channel_for_each_label_and_place():
    mask = torch.zeros(1, 64, 64, dtype=torch.long)
    mask[0, 8:16, 16:24] = 4  # one cell of the grid
    cond = ldm.beside(ldm.MAP, space(8), {"mask": mask})
    assert cond.shape == (1, 7 * 16, 8, 8) and cond.sum() == 16 * 64  # one label for each of 16 places in 64 cells
    here, elsewhere = cond[0, :, 1, 2].view(7, 16), cond[0, :, 2, 1].view(7, 16)
    assert here[4].all() and here.sum() == 16 and elsewhere[0].all()


def test_holes_are_rectangles_on_the_grid_and_what_is_in_them_is_not_seen():
    images = torch.rand(20, 3, 64, 64)
    hole = ldm.holes(images, torch.Generator().manual_seed(0))
    cells = nn.functional.avg_pool2d(hole, 8)
    assert set(cells.unique().tolist()) == {0.0, 1.0}
    for one in cells[:, 0]:
        rows, columns = one.any(1).sum().item(), one.any(0).sum().item()
        assert one.sum() == rows * columns and {rows, columns} <= {2, 3, 4}
    other = torch.where(hole > 0, 1 - images, images)
    told = [ldm.beside(ldm.HOLE, space(8), {"image": part, "hole": hole}) for part in (images, other)]
    assert torch.equal(*told) and torch.equal(told[0][:, -1:], cells)


@pytest.mark.parametrize("drop", [0.0, 1.0])
def test_a_caption_is_left_out_as_often_as_asked(drop):
    settings = replace(SMOKE, drop=drop)
    task = ldm.build(settings, ldm.model(settings))
    seen = []
    task.players[0].module.register_forward_pre_hook(lambda _, args: seen.append(args[2]))
    task.players[0].loss(next(task.batches(0)))
    assert ((seen[0] == tokenize([""])).all(1) == bool(drop)).all()


@pytest.mark.parametrize("condition, drop", [(ldm.MAP, 0.0), (ldm.MAP, 1.0), (ldm.LOW, 1.0)])
def test_maps_are_left_out_as_often_as_asked_and_small_pictures_never(condition, drop):
    settings = replace(SMOKE, condition=condition, drop=drop, latents="kl", size=64, count=16)
    task = ldm.build(settings)
    seen = []
    task.players[0].module.register_forward_pre_hook(lambda _, args: seen.append(args[2]))
    batch = next(task.batches(0))
    task.players[0].loss(batch)
    without = condition == ldm.MAP and drop == 1
    assert batch["cond"].any() and torch.equal(seen[0], batch["cond"] * (not without))


def test_a_map_is_guided_from_no_labels_at_all():
    settings = replace(SMOKE, condition=ldm.MAP, latents="kl", size=64)
    torch.manual_seed(0)
    model = ldm.model(settings).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    asked = torch.rand(2, 112, 8, 8)
    plain, none, blank = (
        ldm.draw(settings, model, cond, scale=scale, steps=2)
        for cond, scale in ((asked, 1.0), (asked, 0.0), (torch.zeros_like(asked), 3.0))
    )
    assert torch.allclose(none, blank, atol=1e-5) and not torch.allclose(none, plain, atol=1e-3)


def test_captions_and_pictures_belong_together():
    """The judge reads real pictures as their captions say, and hardly ever as another picture's caption."""
    batch = data.load("shapes", "test", size=64).batch(range(200))
    right = ldm.obeyed(batch["image"], batch["factors"])
    wrong = ldm.obeyed(batch["image"].roll(1, 0), batch["factors"])
    assert right["right_everything"] > 0.95
    # by chance 1/6 of the kinds, 1/8 of the colours, 1/9 of the places; three standard deviations of 200 trials
    assert wrong["right_kind"] < 1 / 6 + 0.08 and wrong["right_colour"] < 1 / 8 + 0.07 and wrong["right_place"] < 0.19


def test_steps_are_spaced_as_diffusers_does_when_trailing():
    diffusers = pytest.importorskip("diffusers")
    for steps in (1, 4, 20, 50):
        theirs = diffusers.DDIMScheduler(num_train_timesteps=1000, timestep_spacing="trailing")
        theirs.set_timesteps(steps)
        assert ldm.path(1000, steps) == [*theirs.timesteps.tolist(), -1]
    for steps in (0, 3, 1001):
        with pytest.raises(UserError, match=f"must divide T = 1000, such as 10, 20 or 50, not {steps}$"):
            ldm.path(1000, steps)


def test_samples_follow_from_the_seed():
    torch.manual_seed(0)
    model = ldm.model(SMOKE).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    one, two, three = (ldm.draw(SMOKE, model, ["red circle", "blue star"], steps=2, seed=seed) for seed in (0, 0, 1))
    assert one.shape == (2, 3, 16, 16) and torch.equal(one, two) and not torch.equal(one, three)


def test_conditions_of_pictures_need_a_grid_that_is_coarse_enough():
    with pytest.raises(UserError, match="condition=low needs latents with f = 4 or 8, not 1"):
        ldm.model(replace(SMOKE, condition=ldm.LOW))
