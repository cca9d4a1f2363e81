"""Tokens and text encoder against CLIPTokenizer and CLIPTextModel of transformers, made by `course.export.text`."""

import itertools
import random
import string
import warnings

import pytest
import torch
from torch import nn

from course import UserError
from course.data.captions import COLOURS, DETAILS, KINDS, PLACES, SIZES, STYLES, VOCABULARY
from course.data.shapes import Shapes, describe
from course.data.shapes_video import ShapesVideo
from course.data.tokens import END, IDS, LENGTH, START, TOKENS, decode, tokenize
from course.export import text as export
from course.models.text import TextEncoder

TOTAL = len(TOKENS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tokenizer") / "made" / "on the way"


@pytest.fixture(scope="module")
def theirs(folder):
    return export.tokenizer(folder)


def reference(tokenizer, captions):
    """What a pipeline of Diffusers asks its tokenizer for."""
    options = {"padding": "max_length", "truncation": True, "max_length": tokenizer.model_max_length}
    return tokenizer(captions, return_tensors="pt", **options).input_ids


def test_all_terse_captions_of_one_shape_have_their_tokens(theirs):
    captions = [" ".join(words) for words in itertools.product(SIZES, COLOURS, KINDS, PLACES)]
    assert captions[0] == "small red circle top left"
    assert torch.equal(tokenize(captions), reference(theirs, captions))


@pytest.mark.parametrize("shapes, detail", [*itertools.product((1, 2), DETAILS), (3, "terse")])
def test_captions_of_pictures_have_their_tokens(theirs, shapes, detail):
    pictures = Shapes(shapes=shapes, detail=detail, styles=STYLES)
    captions = describe(pictures.factors(range(1000)), detail)
    assert torch.equal(tokenize(captions), reference(theirs, captions))
    assert decode(tokenize(captions)) == captions


@pytest.mark.parametrize("detail", DETAILS)
def test_captions_of_videos_have_their_tokens(theirs, detail):
    captions = ShapesVideo(size=16, frames=1, detail=detail, styles=STYLES).batch(range(300))["caption"]
    assert torch.equal(tokenize(captions), reference(theirs, captions))
    assert decode(tokenize(captions)) == captions


def test_so_have_no_words_upper_case_and_odd_spaces(theirs):
    captions = ["", "  ", "RED Circle", "\tred   circle \n", "red,circle", "red , circle,", *VOCABULARY]
    assert torch.equal(tokenize(captions), reference(theirs, captions))


def test_so_has_every_text_of_ascii_characters(theirs):
    """Among them unknown words, contractions, digits and marks; those that do not fit are refused, not cut."""
    draw, compared = random.Random(0), 0
    signs = string.printable[:95] + string.ascii_lowercase * 2 + " ',"
    for _ in range(3000):
        caption = "".join(draw.choice(signs) for _ in range(draw.randrange(60)))
        caption = draw.choice(("", "red circle ")) + caption + draw.choice(("", " red circle"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                mine = tokenize([caption])
            except UserError:
                longer = theirs(caption).input_ids
                assert len(longer) > LENGTH
                continue
        assert torch.equal(mine, reference(theirs, [caption])), caption
        compared += 1
    assert 1000 < compared < 3000


def test_it_says_itself_what_the_special_tokens_are(theirs):
    assert theirs.model_max_length == LENGTH and len(theirs) == TOTAL
    assert theirs.get_vocab() == IDS
    assert theirs.bos_token_id == IDS[START]
    assert theirs.eos_token_id == theirs.pad_token_id == theirs.unk_token_id == IDS[END]


def test_it_survives_being_saved_as_a_part_of_a_pipeline(theirs, tmp_path):
    theirs.save_pretrained(tmp_path)
    again = type(theirs).from_pretrained(tmp_path, local_files_only=True)
    captions = ["a large red circle, on a plain ground", "", "whale"]
    assert torch.equal(reference(again, captions), reference(theirs, captions))


# The encoder


def encoder(dtype=torch.float32, width=32, depth=3, heads=4, words=TOTAL, length=LENGTH):
    """With random weights, none of them zero."""
    torch.manual_seed(0)
    model = TextEncoder(words, length, width, depth, heads)
    for name, parameter in model.named_parameters():
        nn.init.normal_(parameter, mean=float("norm" in name and name.endswith("weight")), std=0.2)
    return model.to(dtype).eval()


CAPTIONS = ["", "large red circle top left", "a small blue star with only an outline in the center, on a plain ground"]


# float32: a dozen layers, numbers of a few units; float64: the same operations in another order
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("sizes", [{}, {"width": 24, "depth": 1, "heads": 2}, {"words": 300, "length": 60}])
@torch.no_grad()
def test_the_same_weights_give_the_same_states(dtype, tolerance, sizes):
    ours = encoder(dtype, **sizes)
    theirs = export.text_encoder(ours)
    assert theirs.dtype == dtype and not theirs.training
    for tokens in (tokenize(CAPTIONS), tokenize(CAPTIONS, 20), torch.randint(0, TOTAL, (4, LENGTH))):
        mine, reference = ours(tokens), theirs(tokens).last_hidden_state
        assert reference.abs().max() > 1  # so that the tolerance means something
        assert (mine - reference).abs().max() <= tolerance


@torch.no_grad()
def test_their_summary_of_a_caption_is_our_state_at_its_end():
    ours, tokens = encoder(), tokenize(CAPTIONS)
    states = export.text_encoder(ours)(tokens).pooler_output
    assert tokens[0, 1] == tokens[1, 6] == tokens[2, 17] == IDS[END]
    assert torch.allclose(states, ours(tokens)[[0, 1, 2], [1, 6, 17]], atol=1e-5)  # as above


@torch.no_grad()
def test_the_export_is_a_copy():
    ours = encoder()
    theirs, before = export.text_encoder(ours), ours(tokenize(CAPTIONS))
    for parameter in theirs.parameters():
        parameter.zero_()
    assert torch.equal(ours(tokenize(CAPTIONS)), before)
