"""Sharpness of edges, seams and the overlap of maps, against loops over every pixel."""

import math

import numpy
import pytest
import torch
from torch.nn.functional import avg_pool2d

from course import UserError, measure
from course.data.canny import canny


def refused(message, call, *arguments):
    with pytest.raises(UserError, match=message) as error:
        call(*arguments)
    assert "\n" not in str(error.value)


# Sharpness


def slope(picture, y, x):
    """The length of the gradient at one place, over all channels."""
    squared = 0.0
    for channel in picture.tolist():
        down, right = channel[y + 1][x] - channel[y][x], channel[y][x + 1] - channel[y][x]
        squared += down**2 + right**2
    return math.sqrt(squared)


def sharpness_by_hand(originals, reconstructions):
    true, made = 0.0, 0.0
    for one, two in zip(originals, reconstructions):
        places = [(y, x) for y in range(one.shape[1] - 1) for x in range(one.shape[2] - 1)]
        slopes = [slope(one, *place) for place in places]
        least = numpy.quantile(slopes, 0.9)
        for place, value in zip(places, slopes):
            if value >= least and value > 0:
                true, made = true + value, made + slope(two, *place)
    return made / true


@pytest.mark.parametrize("channels, size", [(1, (8, 8)), (3, (5, 9))])
def test_sharpness_is_the_slope_kept_at_the_edges(channels, size):
    torch.manual_seed(0)
    x, y = torch.rand(4, channels, *size) * 2 - 1, torch.rand(4, channels, *size) * 2 - 1
    # ours computes in float64 from float32 pictures, as the loops do
    assert measure.sharpness(x, y) == pytest.approx(sharpness_by_hand(x, y), rel=1e-9)


def test_sharpness_of_a_copy_is_one_and_of_half_the_contrast_a_half():
    x = torch.rand(3, 1, 12, 12)
    assert measure.sharpness(x, x) == 1
    assert measure.sharpness(x, 0.5 * x + 0.2) == pytest.approx(0.5, abs=1e-6)  # float32 pictures
    assert measure.sharpness(x, torch.zeros_like(x)) == 0


def test_a_blurred_or_shifted_edge_is_less_sharp():
    x = torch.ones(1, 1, 16, 16)
    x[..., 8:] = -1
    blurred = avg_pool2d(x, 5, stride=1, padding=2, count_include_pad=False)
    # The step of 2 is spread over five pixels.  Nine tenths of the picture are flat: these must not count as edges, or
    # what the blur moved there would make up for what it took.
    assert measure.sharpness(x, blurred) == pytest.approx(1 / 5)
    assert measure.sharpness(x, x.roll(3, dims=3)) == 0  # sharp, and at the wrong place


def test_flat_pictures_have_neither_edges_nor_seams():
    flat = torch.zeros(1, 1, 4, 12)
    refused("flat", measure.sharpness, flat, flat)
    refused("flat", measure.seam, flat, [4])
    refused("flat", measure.seam, torch.rand(1, 1, 4, 3), [1, 2])


def test_sharpness_needs_equal_shapes():
    refused("equal shapes", measure.sharpness, torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 5))


# Seams


def seam_by_hand(images, columns):
    at_border, elsewhere = [], []
    for c in range(1, images.shape[-1]):
        for row in (images[..., c] - images[..., c - 1]).abs().flatten().tolist():
            (at_border if c in columns else elsewhere).append(row)
    return numpy.mean(at_border) / numpy.mean(elsewhere)


@pytest.mark.parametrize("columns", [[1], [4, 8], [11]])
def test_a_seam_is_the_step_across_a_border_over_that_elsewhere(columns):
    torch.manual_seed(0)
    images = torch.rand(3, 2, 5, 12)
    assert measure.seam(images, columns) == pytest.approx(seam_by_hand(images, columns), rel=1e-6)  # float32 steps


def test_a_seam_shows_and_noise_has_none():
    torch.manual_seed(0)
    images = torch.rand(50, 1, 16, 16)
    # a mean of 800 against one of 11,200 steps of mean 1/3 and deviation 0.24: 2.6 % standard error
    assert measure.seam(images, [8]) == pytest.approx(1, abs=0.11)
    images[..., 8:] += 5
    assert measure.seam(images, [8]) > 10


@pytest.mark.parametrize("columns", [[], [0], [3, 12], [-1]])
def test_borders_outside_the_picture_are_refused(columns):
    refused(r"columns 1 \.\. 11", measure.seam, torch.zeros(1, 1, 4, 12), columns)


# Overlap of maps


def iou_by_hand(seen, wanted):
    pictures = []
    for one, two in zip(seen.tolist(), wanted.tolist()):
        pixels = [(a, b) for rows in zip(one, two) for a, b in zip(*rows)]
        labels = {b for _, b in pixels} - {0}
        each = []
        for label in labels:
            both = sum(a == label and b == label for a, b in pixels)
            either = sum(a == label or b == label for a, b in pixels)
            each.append(both / either)
        if each:
            pictures.append(sum(each) / len(each))
    return sum(pictures) / len(pictures)


def test_the_overlap_is_that_of_its_definition():
    torch.manual_seed(0)
    seen, wanted = torch.randint(0, 5, (20, 6, 7)), torch.randint(0, 4, (20, 6, 7))
    wanted[3] = 0  # a picture without anything does not count
    wanted[4][wanted[4] == 2] = 1  # one without a label that others have
    # sums of a handful of fractions in float64
    assert measure.iou(seen, wanted) == pytest.approx(iou_by_hand(seen, wanted), rel=1e-12)


def test_the_overlap_of_equal_maps_is_one_and_of_disjoint_ones_zero():
    wanted = torch.zeros(2, 4, 4, dtype=torch.int64)
    wanted[:, 1:3, 1:3] = 6
    assert measure.iou(wanted, wanted) == 1
    assert measure.iou(torch.zeros_like(wanted), wanted) == 0
    assert measure.iou(wanted.roll(1, dims=2), wanted) == pytest.approx(2 / 6)


def test_a_label_that_nobody_wanted_costs_only_what_it_covers():
    wanted = torch.tensor([[[0, 0, 1, 1]]])
    assert measure.iou(torch.tensor([[[2, 2, 1, 1]]]), wanted) == 1
    assert measure.iou(torch.tensor([[[0, 0, 2, 1]]]), wanted) == 0.5


def test_maps_without_anything_are_refused():
    empty = torch.zeros(2, 4, 4, dtype=torch.int64)
    refused("something on its ground", measure.iou, empty + 1, empty)
    refused("maps of one shape", measure.iou, empty, empty[:1])


@pytest.mark.parametrize("which", [0, 1])
def test_maps_of_fractions_are_refused(which):
    maps = [torch.ones(2, 4, 4, dtype=torch.int64)] * 2
    maps[which] = maps[which] / 2  # as interpolation leaves them
    refused("maps of whole numbers, got torch.*float32", measure.iou, *maps)


# Edges of pictures and how they lie on others


def within(edges, other, reach):
    """Share of edges with one of the others at most so many pixels away, place by place."""
    height, width = edges.shape
    hits = []
    for y, x in zip(*numpy.nonzero(edges)):
        near = other[max(0, y - reach) : y + reach + 1, max(0, x - reach) : x + reach + 1]
        hits.append(near.any())
    return numpy.mean(hits)


@pytest.mark.parametrize("reach", [0, 1, 2])
def test_agreement_of_edges_against_a_loop(reach):
    generator = torch.Generator().manual_seed(0)
    made, wanted = ((torch.rand(1, 1, 12, 17, generator=generator) < 0.08).float() for _ in range(2))
    a, b = made[0, 0].numpy(), wanted[0, 0].numpy()
    precision, recall = within(a, b, reach), within(b, a, reach)
    f1 = 2 * precision * recall / (precision + recall)
    assert measure.edge_agreement(made, wanted, reach) == pytest.approx(f1, rel=1e-6)


def test_agreement_of_edges_at_its_ends():
    line = torch.zeros(1, 1, 9, 9)
    line[..., 4] = 1
    assert measure.edge_agreement(line, line) == 1
    assert measure.edge_agreement(line.roll(1, -1), line) == 1  # one pixel beside it
    assert measure.edge_agreement(line.roll(2, -1), line) == 0
    assert measure.edge_agreement(torch.zeros_like(line), line) == 0
    refused("no edges to agree with", measure.edge_agreement, line, torch.zeros_like(line))
    refused("equal shapes", measure.edge_agreement, line, line[..., :5])


def test_canny_finds_the_border_of_a_square():
    image = torch.full((1, 3, 32, 32), -0.8)
    image[..., 8:24, 8:24] = 0.8
    edges = canny(image)
    assert edges.shape == (1, 1, 32, 32) and set(edges.unique().tolist()) == {0.0, 1.0}
    border = torch.zeros(1, 1, 32, 32)
    border[..., 8:24, 8:24] = 1
    border[..., 9:23, 9:23] = 0
    assert measure.edge_agreement(edges, border) == 1
    assert not canny(torch.zeros(1, 3, 16, 16)).any()
    refused(r"needs pictures \(N, 3, H, W\)", canny, image[0])
