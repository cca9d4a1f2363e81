"""Windows: pieces of pictures, where they come from and that they never change."""

import pytest
import torch

from course import UserError, data
from course.data.windows import Windows


@pytest.fixture(scope="module")
def wide():
    return data.load("shapes", "train", size=(32, 48), shapes=(2, 3), count=200)


def places(whole, piece):
    """All (top, left) at which a piece lies in its picture."""
    h, w = piece.shape[-2:]
    rows, columns = whole.shape[-2] - h + 1, whole.shape[-1] - w + 1
    return {(y, x) for y in range(rows) for x in range(columns) if torch.equal(whole[..., y : y + h, x : x + w], piece)}


def test_pieces_of_picture_and_map_are_cut_at_the_same_place(wide):
    pieces, source = Windows(wide, (32, 32)).batch(range(60)), wide.batch(range(60))
    assert set(pieces) == {"image", "mask"} and pieces["mask"].dtype == source["mask"].dtype
    assert pieces["image"].shape == (60, 3, 32, 32) and pieces["mask"].shape == (60, 32, 32)
    lefts = set()
    for i in range(60):
        image = places(source["image"][i], pieces["image"][i])
        common = image & places(source["mask"][i], pieces["mask"][i])
        assert common
        lefts |= {x for _, x in image} if len(image) == 1 else set()
    # 17 places: sixty uniform draws leave out one with probability 17 exp(-60 / 17) = 0.5, so not all are asked for
    assert len(lefts) >= 12


def test_every_place_is_cut_in_both_directions(wide):
    windows = Windows(wide, (30, 46))
    pieces, source = windows.batch(range(200)), wide.batch(range(200))
    found = [places(source["image"][i], pieces["image"][i]) for i in range(200)]
    assert all(found)
    # 9 places and 200 draws: 9 exp(-200 / 9), a billionth, to miss one
    assert {next(iter(place)) for place in found if len(place) == 1} == {(y, x) for y in range(3) for x in range(3)}


def test_a_piece_is_the_same_in_every_batch(wide):
    windows, again = Windows(wide, (16, 24)), Windows(wide, (16, 24))
    many = windows.batch([9, 3, 3, 150])
    for row, number in enumerate((9, 3, 3, 150)):
        alone = again.batch(torch.tensor([number]))
        for key in ("image", "mask"):
            assert torch.equal(many[key][row], alone[key][0])


def test_a_window_of_the_whole_size_is_the_picture(wide):
    assert torch.equal(Windows(wide, (32, 48)).batch([5, 6])["image"], wide.batch([5, 6])["image"])
    windows = Windows(wide, (16, 24))
    assert len(windows) == 200 and windows.channels == 3 and windows.size == (16, 24) and windows.name == "shapes"


def test_sets_without_maps_have_pictures_alone():
    digits = data.load("digits", "train")
    assert set(Windows(digits, (4, 4)).batch([0, 1])) == {"image"}


@pytest.mark.parametrize("size", [(33, 32), (32, 49)])
def test_what_does_not_fit_is_refused(wide, size):
    with pytest.raises(UserError, match=f"{size[0]}x{size[1]} is larger than the pictures of shapes, 32x48") as error:
        Windows(wide, size)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("size", [(0, 8), (8, 0), (-3, 8)])
def test_empty_windows_are_refused(wide, size):
    with pytest.raises(UserError, match=f"at least 1x1 pixels, not {size[0]}x{size[1]}$"):
        Windows(wide, size)


def test_clips_have_no_windows():
    with pytest.raises(UserError, match="shapes_video has none"):
        Windows(data.load("shapes_video", size=16, frames=2), (8, 8))


def test_numbers_that_do_not_exist_are_refused(wide):
    with pytest.raises(UserError, match="no item 200"):
        Windows(wide, (16, 16)).batch([200])
