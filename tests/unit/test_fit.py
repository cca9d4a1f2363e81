"""The training loop: it does what a loop written out by hand does, and it can go on where it stopped."""

import json
import math
import multiprocessing
import os
import random
import re
import signal
import time
from types import SimpleNamespace

import pytest
import torch
from accelerate import PartialState
from torch import nn

from course import UserError
from course.train import checkpoint
from course.train.fit import Player, TrainingError, _Watch, fit, step_seed


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    """Bit-by-bit equality is promised there; a GPU adds numbers in any order."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    PartialState._reset_state()


def batches(start):
    while True:
        draw = torch.Generator().manual_seed(start)
        yield {"x": torch.randn(8, 3, 6, 6, generator=draw), "name": [f"item {i}" for i in range(8)]}
        start += 1


def autoencoder(**options):
    """One player with everything that a resume could forget: noise, dropout, buffers, average, strides."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.SiLU(),
        nn.Dropout(0.2),
        nn.Conv2d(4, 3, 3, padding=1),
    ).to(memory_format=torch.channels_last)

    def loss(batch):
        x = batch["x"]
        error = (net(x + 0.1 * torch.randn_like(x)) - x).pow(2).mean()
        return error, {"root": error.detach().sqrt()}

    return [
        Player("ae", net, loss, **{"ema": 0.9, "warmup": 3, "decay": True, "weight_decay": 0.1, **options})
    ]


def rivals():
    """Two players, the first of which learns through the second."""
    torch.manual_seed(0)
    maker, critic = nn.Linear(5, 3 * 36), nn.Linear(3 * 36, 1)
    draw = lambda batch: maker(torch.randn(len(batch["x"]), 5))
    softplus = nn.functional.softplus
    return [
        Player("maker", maker, lambda batch: softplus(-critic(draw(batch))).mean(), ema=0.95, decay=True),
        Player(
            "critic",
            critic,
            lambda b: softplus(critic(draw(b).detach())).mean() + softplus(-critic(b["x"].flatten(1))).mean(),
            lr=1e-2,
        ),
    ]


def run(players, steps, **options):
    return [progress.losses for progress in fit(players, batches, steps, **options)]


def same_files(one, other):
    (a, meta_a), (b, meta_b) = checkpoint.load(one), checkpoint.load(other)
    assert a.keys() == b.keys() and meta_a["step"] == meta_b["step"]
    return all(torch.equal(a[key], b[key]) for key in a)


# The mathematics


def test_equals_a_loop_written_out_by_hand():
    steps, warmup, decay = 20, 4, 0.8
    torch.manual_seed(1)
    net = nn.Linear(108, 4)
    by_hand = nn.Linear(108, 4)
    by_hand.load_state_dict(net.state_dict())
    average = {key: value.clone() for key, value in net.state_dict().items()}
    loss = lambda net, batch: net(batch["x"].flatten(1)).pow(2).mean() * 50
    player = Player(
        "net",
        net,
        lambda batch: loss(net, batch),
        lr=0.01,
        weight_decay=0.1,
        clip=0.5,
        warmup=warmup,
        decay=True,
        ema=decay,
    )
    losses = run([player], steps)

    optimizer = torch.optim.AdamW(by_hand.parameters(), lr=0.01, weight_decay=0.1)
    for step, batch in zip(range(steps), batches(0)):
        rate = (
            (step + 1) / warmup
            if step < warmup
            else 0.5 + 0.5 * math.cos(math.pi * (step - warmup) / (steps - warmup))
        )
        optimizer.param_groups[0]["lr"] = 0.01 * rate
        optimizer.zero_grad()
        value = loss(by_hand, batch)
        value.backward()
        norm = torch.cat([p.grad.flatten() for p in by_hand.parameters()]).norm()
        for p in by_hand.parameters():
            p.grad *= min(1, 0.5 / norm)
        optimizer.step()
        assert losses[step]["net"] == pytest.approx(value.item(), rel=1e-4)
        keep = 0 if step == 0 else min(decay, (1 + step) / (10 + step))
        for key, weights in by_hand.state_dict().items():
            average[key] = keep * average[key] + (1 - keep) * weights
    for key, weights in by_hand.state_dict().items():
        torch.testing.assert_close(net.state_dict()[key], weights, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(player.trained.state_dict()[key], average[key], rtol=1e-4, atol=1e-6)


def test_clipping_bounds_the_gradient():
    def norms(clip):
        net = nn.Linear(108, 4)
        player = Player("net", net, lambda batch: net(batch["x"].flatten(1)).pow(2).mean() * 1e4, clip=clip)
        return [
            torch.cat([p.grad.flatten() for p in net.parameters()]).norm().item()
            for _ in fit([player], batches, 5)
        ]

    assert min(norms(None)) > 100
    assert norms(0.25) == pytest.approx([0.25] * 5, rel=1e-4)


@pytest.mark.parametrize("parts", [2, 3, 8])  # 8 items: equal parts, unequal ones, single items
def test_a_batch_in_parts_gives_the_same_update(parts):
    def trained(parts):
        torch.manual_seed(1)
        net = nn.Linear(108, 4)

        def loss(batch):
            error = net(batch["x"].flatten(1)).pow(2).mean() * 1e4
            return error, {"half": error.detach() / 2}

        losses = run([Player("net", net, loss, clip=0.5, ema=0.9)], 6, parts=parts)
        return losses, net.weight.grad.clone(), net.weight.detach()

    losses, gradient, weight = trained(1)
    others, gradient_, weight_ = trained(parts)
    # the same sums in another order
    assert [entry["net/half"] for entry in others] == pytest.approx([entry["net/half"] for entry in losses], rel=1e-5)
    torch.testing.assert_close(gradient_, gradient, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(weight_, weight, rtol=1e-4, atol=1e-6)
    # clipped once, after the last part: clipped part by part, the sum could have any norm up to 0.5
    assert gradient_.norm().item() == pytest.approx(0.5, rel=0.02)  # the bias has the rest


def test_rate_depends_on_the_step_alone():
    player = Player("p", nn.Linear(1, 1), None, lr=2.0, warmup=4, decay=True)
    rates = [player.rate(step, 104) for step in range(104)]
    assert rates[:5] == [0.5, 1.0, 1.5, 2.0, 2.0]
    assert rates[54] == pytest.approx(1.0) and 0 < rates[-1] < 0.001
    assert Player("p", nn.Linear(1, 1), None, lr=2.0).rate(10**6, 10**6 + 1) == 2.0


def test_learns():
    losses = run(autoencoder(lr=1e-2), 150)
    assert losses[-1]["ae"] < 0.6 * losses[0]["ae"]
    assert losses[-1]["ae/root"] == pytest.approx(math.sqrt(losses[-1]["ae"]), rel=1e-5)


def test_bfloat16_inside_the_loss_only():
    net, seen = nn.Linear(108, 4), []

    def loss(batch):
        y = net(batch["x"].flatten(1))
        seen.append(y.dtype)
        return y.pow(2).mean()

    for precision in ("bf16", "no"):
        run([Player("net", net, loss)], 1, precision=precision)
    assert seen == [torch.bfloat16, torch.float32]
    assert net.weight.dtype == net.weight.grad.dtype == torch.float32


def test_each_player_trains_alone():
    players = rivals()
    maker, critic = players
    seen = []
    loss = maker.loss

    def watched(batch):
        seen.append((maker.module.weight.requires_grad, critic.module.weight.requires_grad))
        return loss(batch)

    maker.loss = watched
    maker.module.bias.requires_grad_(False)
    frozen, start = maker.module.bias.clone(), critic.module.weight.clone()
    for _ in fit(players, batches, 2):
        assert critic.module.weight.requires_grad and maker.module.weight.requires_grad
    assert seen == [(True, False)] * 2
    assert torch.equal(maker.module.bias, frozen) and not maker.module.bias.requires_grad
    assert not torch.equal(critic.module.weight, start)


def test_looking_in_between_changes_nothing(tmp_path):
    run(autoencoder(), 6, checkpoint=tmp_path / "a")
    players = autoencoder()
    for _ in fit(players, batches, 6, checkpoint=tmp_path / "b"):
        players[0].module.eval()
        players[0].trained(torch.randn(2, 3, 6, 6))
    assert same_files(tmp_path / "a", tmp_path / "b")


def test_seconds_leave_out_the_caller():
    updates = fit(autoencoder(), batches, 3)
    for _ in range(3):
        seconds = next(updates).seconds
        time.sleep(1)
    assert seconds < 1


# Going on


@pytest.mark.parametrize("make", [autoencoder, rivals])
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_resume_equals_an_uninterrupted_run(tmp_path, make, precision):
    straight = run(make(), 12, checkpoint=tmp_path / "straight", precision=precision)
    losses = []
    for stop in (5, 6, 11):  # left early, three times, once after a single update
        for progress in fit(
            make(), batches, 12, checkpoint=tmp_path / "parts", resume=stop > 5, precision=precision
        ):
            losses.append(progress.losses)
            if progress.step == stop:
                break
        assert checkpoint.describe(tmp_path / "parts")["step"] == stop
    losses += run(make(), 12, checkpoint=tmp_path / "parts", resume=True, precision=precision)
    assert losses == straight
    assert same_files(tmp_path / "straight", tmp_path / "parts")


def test_resume_from_a_checkpoint_on_the_way(tmp_path):
    run(rivals(), 12, checkpoint=tmp_path / "straight")
    for progress in fit(rivals(), batches, 12, checkpoint=tmp_path / "parts", every=4):
        if progress.step == 7:
            old = (tmp_path / "parts").read_bytes()  # what a kill at this moment would leave
    (tmp_path / "parts").write_bytes(old)
    assert checkpoint.describe(tmp_path / "parts")["step"] == 4
    assert len(run(rivals(), 12, checkpoint=tmp_path / "parts", resume=True)) == 8
    assert same_files(tmp_path / "straight", tmp_path / "parts")


def test_resume_of_a_finished_training(tmp_path):
    run(autoencoder(), 3, checkpoint=tmp_path / "a")
    players = autoencoder()
    assert run(players, 3, checkpoint=tmp_path / "a", resume=True) == []
    weights = checkpoint.load(tmp_path / "a")[0]["ae/average/module.0.weight"]
    assert torch.equal(players[0].trained[0].weight, weights)


def test_resume_refuses_another_training(tmp_path):
    path = tmp_path / "a"
    run(autoencoder(), 4, checkpoint=path)
    other = lambda **options: {"checkpoint": path, "resume": True, **options}
    for players, steps, options, message in (
        (rivals(), 4, other(), r"players is \['ae'\], not \['maker', 'critic'\]"),
        (autoencoder(), 4, other(seed=1), "seed is 0, not 1"),
        (autoencoder(), 4, other(precision="bf16"), "precision is 'no', not 'bf16'"),
        (autoencoder(), 3, other(), "at step 4, beyond the 3"),
        (autoencoder(ema=None), 4, other(), "average"),
        (autoencoder(), 4, other(checkpoint=tmp_path / "none"), "no such file"),
    ):
        with pytest.raises(UserError, match=message) as error:
            fit(players, batches, steps, **options)
        assert "\n" not in str(error.value)
    wide = [Player("ae", nn.Conv2d(3, 5, 3), None, ema=0.9)]
    with pytest.raises(UserError, match="lacks 'weight'"):
        fit(wide, batches, 4, **other())


def train_with_kills(path):
    torch.set_num_threads(1)  # a forked process has lost its parent's pool of threads
    run(rivals(), 3000, checkpoint=path, every=1, resume=path.exists())


def test_killed_ten_times(tmp_path):
    path, moment, steps = tmp_path / "a", random.Random(0), []
    fork = multiprocessing.get_context("fork")
    for _ in range(10):
        before = steps[-1] if steps else 0
        worker = fork.Process(target=train_with_kills, args=(path,))
        worker.start()
        deadline = time.time() + 20
        while (
            checkpoint.describe(path)["step"] if path.exists() else 0
        ) <= before and time.time() < deadline:
            time.sleep(0.002)
        time.sleep(moment.uniform(0, 0.1))
        os.kill(worker.pid, signal.SIGKILL)
        worker.join()
        assert worker.exitcode == -signal.SIGKILL
        tensors, meta = checkpoint.load(path)
        steps.append(meta["step"])
        assert steps[-1] > before and all(value.isfinite().all() for value in tensors.values())
    print(f"killed 10 times after updates {steps}; 10 of 10 checkpoints load")
    last = steps[-1] + 5
    # Only what depends on the run's length may differ between runs of 3000 and of fewer updates: rivals()
    # decays.
    for progress in fit(rivals(), batches, 3000, checkpoint=path, resume=True):
        if progress.step == last:
            break
    for progress in fit(rivals(), batches, 3000, checkpoint=tmp_path / "straight"):
        if progress.step == last:
            break
    assert same_files(path, tmp_path / "straight")


# What goes wrong


def test_nan_loss_names_step_and_seed(tmp_path):
    net, seen = nn.Linear(108, 4), []

    def loss(batch):
        noise = torch.randn(3)
        seen.append((batch["x"], noise))
        return net(batch["x"].flatten(1)).mean() * (float("nan") if len(seen) == 6 else 1)

    steps = fit([Player("net", net, loss)], batches, 10, seed=7, checkpoint=tmp_path / "a", every=1)
    with pytest.raises(TrainingError, match="the loss of 'net' is nan at step 5 ") as error:
        for _ in steps:
            weights = net.weight.clone()
    assert isinstance(error.value, UserError) and "\n" not in str(error.value)
    step, seed = map(int, re.search(r"batches\((\d+)\).*manual_seed\((\d+)\)", str(error.value)).groups())
    assert torch.equal(next(batches(step))["x"], seen[-1][0])
    torch.manual_seed(seed)
    assert torch.equal(torch.randn(3), seen[-1][1])
    assert torch.equal(net.weight, weights)
    assert checkpoint.describe(tmp_path / "a")["step"] == 5


def test_infinite_loss_and_gradient():
    net = nn.Linear(108, 4)
    with pytest.raises(TrainingError, match="loss of 'net' is inf at step 0"):
        run([Player("net", net, lambda b: net(b["x"].flatten(1)).mean().exp() * float("inf"))], 3)
    # The root of zero is finite, its derivative is not; clipping would turn it into nan everywhere.
    with pytest.raises(TrainingError, match="gradient of 'net' is nan at step 0"):
        run([Player("net", net, lambda b: (net(b["x"].flatten(1)) * 0).sum().sqrt())], 3)
    assert net.weight.isfinite().all()


def test_nan_found_late():
    """On a GPU losses are looked at now and then, but the step that went wrong is named."""
    watch = _Watch(7, SimpleNamespace(device=torch.device("cuda"), process_index=0))
    for step in range(6):
        bad = float("inf") if step >= 3 else 1.0
        watch.add("maker", step, torch.tensor(1.0), torch.tensor(2.0))
        watch.add("critic", step, torch.tensor(bad), torch.tensor(bad))
    with pytest.raises(TrainingError, match="the loss of 'critic' is inf at step 3 "):
        watch.look()


def test_wrong_arguments(tmp_path):
    player = autoencoder()[0]
    for players, steps, options, message in (
        ([], 1, {}, "different names"),
        ([player, player], 1, {}, "different names"),
        ([Player("a/b", player.module, None)], 1, {}, "slash"),
        ([player], 0, {}, "steps must be at least 1"),
        ([player], 1, {"precision": "fp16"}, "no or bf16"),
        ([player], 1, {"seed": -1}, "seed"),
        ([player], 1, {"parts": 0}, "parts must be at least 1"),
        ([player], 1, {"every": 0, "checkpoint": tmp_path / "a"}, "every must be"),
        ([player], 1, {"every": 1}, "need a checkpoint"),
        ([player], 1, {"resume": True}, "need a checkpoint"),
        (autoencoder(ema=1.0), 1, {}, "ema"),
        (autoencoder(clip=0.0), 1, {}, "clip"),
    ):
        with pytest.raises(UserError, match=message):
            fit(players, batches, steps, **options)
    with pytest.raises(UserError, match="batches end at step 2 of 5"):
        list(fit([player], lambda start: (batch for _, batch in zip(range(2), batches(0))), 5))
    with pytest.raises(UserError, match="a batch of 8 cannot be worked through in 9 parts"):
        run([player], 1, parts=9)
    with pytest.raises(UserError, match="cannot write"):
        run([player], 1, checkpoint=tmp_path / "none" / "a")


def test_seeds_differ():
    seeds = [
        step_seed(seed, step, process) for seed in range(5) for step in range(50) for process in range(3)
    ]
    assert len(set(seeds)) == len(seeds) and step_seed(1, 2, 3) == step_seed(1, 2, 3)


# Several processes


def halves():
    """Two players without noise; one parameter is used by the first half of each batch only."""
    net, critic = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(64, 6)), nn.Linear(6, 1)
    net.to(memory_format=torch.channels_last)
    side = nn.Parameter(torch.ones(6))
    net.register_parameter("side", side)
    net.register_parameter("idle", nn.Parameter(torch.ones(3)))  # used by none: weight decay leaves it alone

    def loss(batch):
        y = net(batch["x"])
        first = [name in ("item 0", "item 1", "item 2", "item 3") for name in batch["name"]]
        value = (y - 1).pow(2).mean() + critic(y).mean() * 0.1
        if any(first):
            value = value + (y[torch.tensor(first)] * side).pow(2).sum() / len(y)
        return value, {"items": torch.tensor(float(len(y)))}

    rival = lambda batch: critic(net(batch["x"]).detach()).pow(2).mean()
    return [
        Player("net", net, loss, lr=0.01, ema=0.9, weight_decay=0.1),
        Player("critic", critic, rival, lr=0.01),
    ]


def in_process(rank, world, folder):
    answer = {"processes": world.num_processes}
    torch.manual_seed(rank)  # other weights in each process: those of process 0 count
    players = halves()
    answer["straight"] = run(players, 30)
    answer["idle"] = players[0].module.idle.tolist()
    parts = []
    torch.manual_seed(rank)
    for progress in fit(halves(), batches, 30, checkpoint=folder / "parts"):
        parts.append(progress.losses)
        if progress.step == 11:
            break
    world.wait_for_everyone()
    torch.manual_seed(5)
    answer["parts"] = parts + run(halves(), 30, checkpoint=folder / "parts", resume=True)
    seven = lambda start: ({key: value[:7] for key, value in batch.items()} for batch in batches(start))
    try:
        next(fit(halves(), seven, 1))
    except UserError as error:
        answer["complaint"] = str(error)
    (folder / f"{rank}.json").write_text(json.dumps(answer))


def test_two_processes_train_like_one(two_processes):
    folder = two_processes(in_process)
    two, other = (json.loads((folder / f"{rank}.json").read_text()) for rank in range(2))
    assert two == other and two["processes"] == 2  # both report the same means
    torch.manual_seed(0)
    one = run(halves(), 30)
    assert one[0]["net/items"] == 8 and two["straight"][0]["net/items"] == 4  # they did share the work
    assert two["complaint"] == "a batch of 7 does not divide by 2 processes; use a multiple"
    assert two["idle"] == [1, 1, 1]
    assert two["parts"] == two["straight"]
    for alone, together in zip(one, two["straight"], strict=True):
        for key in ("net", "critic"):
            # Means over halves add the same numbers in another order: a rounding of 6e-8, which 30 updates
            # amplify.
            assert together[key] == pytest.approx(alone[key], rel=1e-5)
