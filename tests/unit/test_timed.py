"""Trainings of equal time: what the trial updates leave behind, and how many updates there will be."""

import torch

from course.train import timed
from course.train.fit import Progress, fit
from course.train.recipes import autoencoder
from course.train.timed import TRIAL, trained_for


def test_the_trial_updates_leave_nothing_behind():
    settings = autoencoder.PROFILES["smoke"]
    found, facts = trained_for(0.0, autoencoder, settings)
    assert facts["steps"] == TRIAL and facts["seconds"] > 0 and not found.training
    torch.manual_seed(settings.seed)
    model = autoencoder.model(settings)
    task = autoencoder.build(settings, model)
    (player,) = task.players
    player.warmup = TRIAL // 5
    for _ in fit(task.players, task.batches, TRIAL, seed=settings.seed, precision=settings.precision):
        pass
    for key, value in player.trained.state_dict().items():
        assert torch.equal(found.state_dict()[key], value), key


def test_the_time_decides_how_many_updates_there_are(monkeypatch):
    asked = []

    def clock(players, batches, steps, **_):  # a training in which an update takes a tenth of a second
        asked.append(steps)
        return (Progress(step, steps, step / 10, {}) for step in range(1, steps + 1))

    monkeypatch.setattr(timed, "fit", clock)
    _, facts = trained_for(5.0, autoencoder, autoencoder.PROFILES["smoke"])
    assert facts == {"steps": 50, "seconds": 5.0} and asked[-1] == 50
