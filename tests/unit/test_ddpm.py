"""The diffusion recipe: its conditions, what it draws and how it is judged; many pictures by several processes."""

from dataclasses import replace

import pytest
import torch

from course import UserError, data
from course.data.captions import COLOURS, KINDS
from course.diffusion import schedule
from course.diffusion.arc import slerp
from course.diffusion.several import sample_several
from course.train.recipes import ddpm

SMOKE = ddpm.PROFILES["smoke"]


class Spy(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.seen = torch.nn.Parameter(torch.zeros(())), []

    def forward(self, x, t, cond):
        self.seen.append(cond)
        return x * self.weight


@pytest.mark.parametrize("drop", [0.0, 0.1, 1.0])
def test_the_condition_is_dropped_in_the_right_share_and_the_last_class_is_none(drop):
    settings = replace(SMOKE, dataset="digits", condition="class", drop=drop)
    spy = Spy()
    task = ddpm.build(settings, spy)
    wanted = torch.arange(4000) % 10
    task.players[0].loss({"image": torch.zeros(4000, 1, 8, 8), "class": wanted})
    given = spy.seen[0]
    assert ddpm.classes(settings) == 10 and given.max() <= 10
    assert torch.equal(given[given < 10], wanted[given < 10])
    assert (given == 10).double().mean().item() == pytest.approx(drop, abs=0.024)  # 5 standard errors
    assert ddpm.model(settings).classes.num_embeddings == 11


def test_the_class_of_a_shape_is_its_kind_and_its_colour():
    settings = replace(SMOKE, dataset="shapes", condition="class")
    batch = data.load("shapes", "train").batch(range(50))
    expected = [k * 8 + c for k, c in zip(batch["factors"]["kind"][:, 0], batch["factors"]["colour"][:, 0])]
    assert ddpm.labels("shapes", batch).tolist() == [int(n) for n in expected]
    assert ddpm.classes(settings) == len(KINDS) * len(COLOURS) == 48
    first = next(ddpm.build(settings, Spy()).batches(0))
    assert first["class"].max() < 48


def test_pairs_that_training_never_shows_are_never_asked_for():
    settings = replace(SMOKE, dataset="shapes", condition="class", T=2, precision="no")
    hidden = ddpm.labels("shapes", data.load("shapes", "composition").batch(range(200))).unique()
    pictures, wanted = ddpm.draw(settings, Spy(), 84, steps=1)
    assert pictures.shape == (84, 3, 32, 32) and pictures.abs().max() <= 1
    assert not torch.isin(wanted, hidden).any() and len(hidden) + len(wanted.unique()) == 48


@pytest.mark.parametrize("dataset", ["glyphs", "shapes"])
def test_real_pictures_are_recognised_as_what_they_are_and_not_as_something_else(dataset):
    batch = data.load(dataset, "test").batch(range(480))
    wanted = ddpm.labels(dataset, batch)
    assert ddpm.recognised(dataset, batch["image"], wanted)["recognised"] >= 0.99
    shuffled = wanted[torch.randperm(480, generator=torch.Generator().manual_seed(0))]
    chance = ddpm.recognised(dataset, batch["image"], shuffled)["recognised"]
    expected = 1 / 10 if dataset == "glyphs" else 1 / 42  # 48 pairs less six that are held out
    assert chance == pytest.approx(expected, abs=5 * (expected / 480) ** 0.5)


# Several processes


def network():
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(1, 1, 3, padding=1)
    return lambda x, t, cond: layer(x) * (1 + cond[:, None, None, None]) / 12


def pictures(**options):
    cond, seeds = torch.arange(64) % 10, range(100, 164)
    options = {"cond": cond, "batch": 12, "eta": 1.0} | options  # 12: six batches, the last one smaller
    return sample_several(schedule.linear(), network(), seeds, (1, 8, 8), 10, **options)


def in_process(rank, world, folder):
    torch.save([pictures(), pictures(eta=0.0), pictures(large=True)], folder / f"{rank}.pt")


def test_64_pictures_by_two_processes_are_those_by_one(two_processes):
    folder = two_processes(in_process)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone = [pictures(), pictures(eta=0.0), pictures(large=True)]
    finally:
        torch.set_num_threads(threads)
    for rank in range(2):
        for one, two in zip(alone, torch.load(folder / f"{rank}.pt"), strict=True):
            assert torch.equal(one, two)
    assert alone[0].shape == (64, 1, 8, 8) and len({picture.sum().item() for picture in alone[0]}) == 64
    # other batches may round in other ways, and ten steps carry that on
    assert torch.allclose(alone[0], pictures(batch=64), atol=1e-4)


@pytest.mark.parametrize(
    "change, complaint",
    [
        (dict(seeds=[]), "seeds must be"),
        (dict(seeds=[1.5]), "seeds must be"),
        (dict(seeds=[-1]), "seeds must be"),
        (dict(batch=0), "batch must be"),
        (dict(cond=torch.zeros(3)), "2 seeds need 2 conditions, not 3"),
        (dict(steps=0), "from 1 to 1000"),
        (dict(eta=2), "eta must lie"),
    ],
)
def test_wrong_calls(change, complaint):
    arguments = dict(seeds=[1, 2], shape=(1, 2, 2), steps=3) | change
    with pytest.raises(UserError, match=complaint):
        sample_several(schedule.linear(), lambda x, t, cond: x, **arguments)


# ---- the arc between two noises


def test_the_arc_ends_at_its_ends_and_keeps_angle_and_length():
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.randn(3, 4, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    other *= one.norm() / other.norm()
    assert torch.allclose(slerp(one, other, 0.0), one) and torch.allclose(slerp(one, other, 1.0), other)
    angle = torch.arccos((one * other).sum() / one.norm() ** 2)
    for c in (0.25, 0.5, 0.9):
        point = slerp(one, other, c)
        assert torch.allclose(point.norm(), one.norm())  # equally long ends: a circle
        assert torch.allclose(torch.arccos((one * point).sum() / one.norm() ** 2), c * angle)


def test_the_arc_between_equal_directions_is_a_line():
    x = torch.ones(2, 2)
    assert torch.allclose(slerp(x, 3 * x, 0.5), 2 * x)
