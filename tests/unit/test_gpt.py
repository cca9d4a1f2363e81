"""GPT: drawing with and without a memory, sliding windows, and bad input."""

import pytest
import torch
from torch import nn

from course import UserError
from course.diffusion.samplers import last
from course.models.gpt import GPT, Cache, GridPlaces, generate, slide

ENTRIES, OTHERS = 9, 3


def generic(length=40, **options):
    torch.manual_seed(0)
    gpt = GPT(ENTRIES, OTHERS, length, 16, 2, 2, **options).eval()
    for name, parameter in gpt.named_parameters():
        nn.init.normal_(parameter, mean=float("norm" in name and name.endswith("weight")), std=0.4)
    return gpt


def seeded(seed=3):
    return torch.Generator().manual_seed(seed)


def prefix(length, count=4):
    return torch.randint(0, ENTRIES + OTHERS, (count, length), generator=seeded(length))


# Drawing


@pytest.mark.parametrize("length", [1, 2, 7, 20])
@pytest.mark.parametrize("options", [{}, {"temperature": 0.5}, {"top_k": 3}, {"top_p": 0.6}])
def test_a_memory_changes_no_draw(length, options):
    gpt = generic()
    one, two = (
        last(generate(gpt, prefix(length), 12, cached=cached, generator=seeded(), **options))
        for cached in (True, False)
    )
    assert torch.equal(one, two) and one.shape == (4, length + 12)
    assert torch.equal(one[:, :length], prefix(length))
    drawn = one[:, length:]
    assert drawn.max() < ENTRIES and drawn.unique().numel() > 1  # prefix tokens are never drawn


@pytest.mark.parametrize("cached", [True, False])
def test_choices_reach_the_draw(cached):
    gpt = generic()
    draw = lambda **options: last(generate(gpt, prefix(2), 15, cached=cached, generator=seeded(), **options))[:, 2:]
    likeliest, plain = draw(top_k=1), draw()
    logits = gpt(torch.cat([prefix(2), likeliest], 1))[:, 1:-1]
    assert torch.equal(logits.argmax(-1), likeliest)
    assert torch.equal(draw(top_p=1e-6), likeliest) and torch.equal(draw(temperature=1e-6), likeliest)
    for options in ({"top_k": 2}, {"top_p": 0.5}, {"temperature": 0.3}):
        assert not torch.equal(draw(**options), plain)
    # with top_k = 2 each code is one of the two likeliest given those before it
    drawn = draw(top_k=2)
    best = gpt(torch.cat([prefix(2), drawn], 1))[:, 1:-1].topk(2, -1).indices
    assert (best == drawn[..., None]).any(-1).all()


def test_each_draw_is_yielded_and_the_model_left_alone():
    gpt = generic()
    before = {name: value.clone() for name, value in gpt.state_dict().items()}
    states = list(generate(gpt, prefix(3), 5, generator=seeded()))
    assert [state.shape[1] for state in states] == [4, 5, 6, 7, 8]
    assert all(torch.equal(state, states[-1][:, : state.shape[1]]) for state in states)
    assert all(torch.equal(value, before[name]) for name, value in gpt.state_dict().items()) and not gpt.training
    assert all(parameter.grad is None for parameter in gpt.parameters()) and not states[-1].requires_grad


def test_the_last_position_can_be_used():
    gpt = generic(length=10)
    for cached in (True, False):
        assert last(generate(gpt, prefix(4), 7, cached=cached)).shape == (4, 11)  # the eleventh is drawn, never read


def test_memory_takes_two_numbers_a_channel_position_and_block():
    assert Cache(generic(), 4).bytes == 2 * 2 * 4 * 40 * 16 * 4
    assert Cache(generic().bfloat16(), 4).bytes == 2 * 2 * 4 * 40 * 16 * 2


def test_weights_start_smaller_where_they_add_to_the_stream():
    torch.manual_seed(0)
    gpt = GPT(50, 10, 64, 128, depth=8)
    # 16,384 numbers and more: a standard error of 0.6 % at most
    assert gpt.token.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert gpt.blocks[3].attention.to_qkv.weight.std().item() == pytest.approx(0.02, rel=0.05)
    for layer in (gpt.blocks[3].attention.to_out, gpt.blocks[3].feed[2]):
        assert layer.weight.std().item() == pytest.approx(0.02 / 4, rel=0.05)
        assert layer.bias.abs().sum() == 0


def test_every_parameter_is_reached_by_a_gradient():
    torch.manual_seed(0)
    gpt = GPT(ENTRIES, OTHERS, 12, 16, 2, 2)
    tokens = torch.arange(12).view(1, 12)  # each token once
    gpt(tokens).square().sum().backward()
    assert [name for name, p in gpt.named_parameters() if not p.grad.abs().sum() > 0] == []


def test_bfloat16_computes_attention_as_float32_nearly():
    gpt = generic()
    with torch.no_grad():
        exact = gpt(prefix(20))
        with torch.autocast("cpu", torch.bfloat16):
            rough = gpt(prefix(20))
    # 2^-9 relative a rounding, some ten layers that add up like a random walk: 1 %; three times that
    assert (rough - exact).abs().mean() <= 0.03 * exact.abs().mean()


# Positions by row and column


def test_a_position_is_the_sum_of_its_row_and_its_column():
    """A coarser prefix lies over the same picture: its row is the mean of the rows that it covers."""
    places = GridPlaces(6, (2, 1), (4, 3))
    for parameter in places.parameters():
        nn.init.normal_(parameter)
    expected = [
        (places.rows[2 * top] + places.rows[2 * top + 1]) / 2 + sum(places.columns) / 3 + places.mark
        for top in range(2)
    ] + [places.rows[row] + places.columns[column] for row in range(4) for column in range(3)]
    # means of two or three numbers in float32
    assert places.weight.shape == (14, 6) and torch.allclose(places.weight, torch.stack(expected), atol=1e-6)


def test_a_memory_changes_no_draw_with_positions_by_row_and_column():
    gpt = generic(length=17, places=GridPlaces(16, (1, 1), (4, 4)))
    assert gpt.position.mark.abs().sum() > 0
    one, two = (last(generate(gpt, prefix(1), 16, cached=i, generator=seeded())) for i in (True, False))
    assert torch.equal(one, two) and one.shape == (4, 17)
    gpt(one).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in gpt.position.parameters())


@pytest.mark.parametrize("prefix_, grid", [((3, 1), (4, 4)), ((1, 3), (4, 4)), ((0, 1), (4, 4)), ((8, 1), (4, 4))])
def test_a_prefix_that_does_not_divide_the_grid_is_refused(prefix_, grid):
    refused("does not divide a grid of 4x4", lambda: GridPlaces(8, prefix_, grid))


# Sliding windows


def constant(count=2):
    return lambda top, left: torch.full((count, 1), ENTRIES)


def by_place(top, left):
    return torch.tensor([[ENTRIES + (top + left) % OTHERS, top % ENTRIES], [ENTRIES, left % ENTRIES]])


def test_a_window_as_large_as_the_map_is_plain_drawing():
    gpt = generic()
    places = list(slide(gpt, constant(), (4, 5), (4, 5), generator=seeded()))
    plain = last(generate(gpt, torch.full((2, 1), ENTRIES), 20, generator=seeded()))[:, 1:]
    assert torch.equal(places[-1][2].flatten(1), plain)
    assert {place[:2] for place in places} == {(0, 0)} and len(places) == 20


@pytest.mark.parametrize(
    "size, window, stride",
    [((6, 9), (3, 4), 1), ((4, 10), (4, 4), 1), ((7, 4), (3, 4), 1), ((8, 8), (4, 4), 2), ((8, 12), (4, 4), 4),
     ((7, 7), (4, 4), 3), ((9, 5), (5, 1), 1)],
)  # fmt: skip
def test_windows_hold_the_code_near_their_middle_and_begin_at_multiples(size, window, stride):
    order = iter([(row, column) for row in range(size[0]) for column in range(size[1])])
    states = list(slide(generic(), constant(), size, window, stride=stride))
    for top, left, _ in states:
        for begin, at, small, large in zip((top, left), next(order), window, size):
            assert begin % stride == 0 and 0 <= begin <= large - small and begin <= at < begin + small
            allowed = [b for b in range(0, large - small + 1, stride) if b <= at < b + small]
            if 2 * stride <= small + 1:  # the last one that has half a window before the code, if there is one
                assert begin == max([b for b in allowed if b <= at - small // 2], default=0)
    codes = states[-1][2]
    assert codes.shape == (2, *size) and codes.min() >= 0 and codes.max() < ENTRIES
    assert next(order, None) is None


@pytest.mark.parametrize("window, stride", [((3, 4), 1), ((4, 4), 2), ((4, 4), 4)])
def test_a_code_depends_on_its_window_and_on_nothing_else(window, stride):
    """Before each draw everything outside the window is changed; the draws stay what they were."""
    gpt, size = generic(), (8, 8) if stride > 1 else (6, 9)
    again = lambda: slide(gpt, by_place, size, window, stride=stride, generator=seeded())
    plain = [(top, left, codes.clone()) for top, left, codes in again()]
    whole, walk, codes, matters = plain[-1][2], again(), None, 0
    for number, (top, left, _) in enumerate(plain):
        if codes is not None:
            inside = codes[:, top : top + window[0], left : left + window[1]].clone()
            codes.copy_((codes + 1) % ENTRIES)
            codes[:, top : top + window[0], left : left + window[1]] = inside
        *place, codes = next(walk)
        row, column = divmod(number, size[1])
        assert place == [top, left] and torch.equal(codes[:, row, column], whole[:, row, column])
        codes.copy_(plain[number][2])
    # inside, every code is changed as soon as it is drawn, and that does matter
    for number, (_, _, codes) in enumerate(again()):
        row, column = divmod(number, size[1])
        matters += int((codes[:, row, column] != whole[:, row, column]).any())
        codes[:, row, column] = (whole[:, row, column] + 1) % ENTRIES
    assert matters > len(plain) / 3


def test_no_gradient_is_kept_of_conditions():
    """They may come from a network; the caller's own gradients stay on between the draws."""
    seen = []
    condition = lambda top, left: seen.append(torch.is_grad_enabled()) or constant()(top, left)
    for _ in slide(generic(), condition, (2, 3), (2, 2)):
        assert torch.is_grad_enabled()
    assert len(seen) >= 6 and not any(seen)


def test_a_window_may_fill_all_positions():
    states = list(slide(generic(length=12), constant(), (3, 6), (3, 4)))  # the twelfth code is drawn, never read
    assert len(states) == 18 and states[-1][2].min() >= 0


def test_each_code_is_that_of_plain_drawing_in_its_window():
    gpt = generic()
    for number, (top, left, codes) in enumerate(slide(gpt, by_place, (5, 7), (3, 3), top_k=1)):
        row, column = divmod(number, 7)
        known = [codes[:, y, x] for y in range(top, top + 3) for x in range(left, left + 3) if (y, x) < (row, column)]
        assert all((one >= 0).all() for one in known)
        tokens = torch.cat([by_place(top, left), *[one[:, None] for one in known]], 1)
        assert torch.equal(codes[:, row, column], gpt(tokens)[:, -1].argmax(-1))
        assert (codes.flatten(1)[:, number + 1 :] == -1).all()  # still to come


# What goes wrong


def refused(message, call):
    with pytest.raises(UserError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "arguments, options, message",
    [
        ((prefix(0), 3), {}, "prefix is empty"),
        ((torch.zeros(4, dtype=torch.int64), 3), {}, "prefix is empty"),
        ((prefix(30), 12), {}, "30 \\+ 12 codes are more than this GPT's 40 positions"),
        ((torch.tensor([[12]]), 3), {}, r"0 \.\. 11, not 12 \.\. 12"),
        ((torch.tensor([[-1]]), 3), {}, r"0 \.\. 11, not -1 \.\. -1"),
        ((torch.zeros(1, 1), 3), {}, "whole numbers"),
        ((prefix(2), 0), {}, "at least 1 code to draw, not 0"),
        ((prefix(2), -3), {}, "at least 1 code to draw, not -3"),
        ((prefix(1), 3), {"temperature": 0.0}, "temperature must be above 0"),
        ((prefix(1), 3), {"top_k": 0}, "top_k must be at least 1"),
        ((prefix(1), 3), {"top_p": 0.0}, "top_p must lie in"),
    ],
)
@pytest.mark.parametrize("cached", [True, False])
def test_wrong_drawing_is_refused_at_the_call(arguments, options, message, cached):
    refused(message, lambda: generate(generic(), *arguments, cached=cached, **options))


@pytest.mark.parametrize(
    "size, window, options, message",
    [
        ((4, 4), (5, 4), {}, "5x4 does not fit into a map of 4x4"),
        ((4, 4), (4, 0), {}, "4x0 does not fit"),
        ((8, 7), (4, 4), {"stride": 2}, "at multiples of 2 do not cover a map of 8x7"),
        ((8, 8), (4, 4), {"stride": 0}, "at multiples of 0 do not cover"),
        ((8, 8), (2, 2), {"stride": 3}, "at multiples of 3 do not cover"),  # two columns would be in no window
        ((8, 8), (7, 7), {}, r"1 \+ 49 codes are more than this GPT's 40 positions"),  # the forty-first draw's
        ((8, 8), (6, 7), {}, r"1 \+ 42 codes"),
        ((4, 4), (4, 4), {"top_p": 2.0}, "top_p must lie in"),
    ],
)
def test_wrong_sliding_is_refused_at_the_call(size, window, options, message):
    refused(message, lambda: slide(generic(), constant(), size, window, **options))


@pytest.mark.parametrize(
    "start, message", [(prefix(0), "prefix is empty"), (torch.tensor([[12]]), r"0 \.\. 11, not 12 \.\. 12")]
)
def test_a_wrong_condition_of_a_window_is_refused_at_the_call(start, message):
    refused(message, lambda: slide(generic(), lambda top, left: start, (4, 4), (4, 4)))


def test_wrong_sequences_and_sizes():
    gpt = generic()
    refused("one token or more", lambda: gpt(prefix(0)))
    refused("41 is longer than the 40", lambda: gpt(prefix(41)))
    cache = Cache(gpt, 4)
    gpt(prefix(39), cache)
    refused("41 is longer than the 40", lambda: gpt(prefix(2), cache))
    refused("16 channels do not divide by 3 heads", lambda: GPT(9, 3, 40, 16, 2, heads=3))
    refused("do not divide by 0 heads", lambda: GPT(9, 3, 40, 16, 2, heads=0))


@pytest.mark.parametrize("length, width, allowed", [(17, 16, True), (16, 16, True), (18, 16, False), (17, 8, False)])
def test_places_must_be_as_many_and_as_wide_as_the_positions(length, width, allowed):
    make = lambda: GPT(ENTRIES, OTHERS, length, width, 1, 2, places=GridPlaces(16, (1, 1), (4, 4)))
    if allowed:
        make()
    else:
        refused(f"at least {length} vectors of {width} numbers, not 17 of 16", make)
