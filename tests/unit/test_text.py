"""Captions as tokens, and the encoder of captions."""

import warnings
from collections import Counter

import pytest
import torch
from torch import nn

from course import UserError
from course.data.captions import DETAILS, STYLES, VOCABULARY, words
from course.data.shapes import Shapes, describe
from course.data.shapes_video import ShapesVideo
from course.data.tokens import END, LENGTH, MERGES, START, TOKENS, decode, spell, tokenize
from course.models.text import QuickGELU, TextEncoder


def captions(detail, count=600):
    """Of pictures with one, two and (in few words) three shapes, and of videos."""
    most = 3 if detail == "terse" else 2
    pictures = (Shapes(shapes=shapes, detail=detail, styles=STYLES) for shapes in range(1, most + 1))
    stills = [text for one in pictures for text in describe(one.factors(range(count)), detail)]
    return stills + ShapesVideo(size=16, frames=1, detail=detail).batch(range(count))["caption"]


@pytest.mark.parametrize("detail", DETAILS)
def test_every_word_of_our_captions_is_one_token(detail):
    texts = captions(detail)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no word is unknown
        tokens = tokenize(texts)
    assert tokens.shape == (len(texts), LENGTH) and tokens.dtype == torch.int64
    for text, row in zip(texts, tokens):
        expected = [START, *words(text), END]
        assert spell(row) == expected + [END] * (LENGTH - len(expected))
    assert decode(tokens) == texts


def test_the_length_is_the_smallest_multiple_of_16_that_holds_our_longest_caption():
    longest = max(len(words(text)) for detail in DETAILS for text in captions(detail))
    # "a large red circle with a hatched fill at the top left" twice, "and", ", on a striped ground"
    assert longest == 2 * 12 + 1 + 5
    assert LENGTH - 16 < longest + 2 <= LENGTH and LENGTH % 16 == 0


def test_tokens_are_the_words_then_pieces_then_start_and_end():
    assert [name.removesuffix("</w>") for name in TOKENS[: len(VOCABULARY)]] == list(VOCABULARY)
    assert TOKENS[-2:] == (START, END) and len(set(TOKENS)) == len(TOKENS)
    assert len(TOKENS) == 228  # rows of trained weights
    letters = [[*word[:-1], word[-1] + "</w>"] for word in VOCABULARY]
    pairs = Counter(left + right for word in letters for left, right in zip(word, word[1:]))
    assert "".join(next(iter(MERGES))) == pairs.most_common(1)[0][0] == "ed</w>"  # the first to be joined
    assert tokenize(["red, a"], 8).tolist() == [[len(TOKENS) - 2, 8, 0, 1] + [len(TOKENS) - 1] * 4]


def test_upper_case_and_spaces_do_not_matter():
    variants = ["A  large RED\ncircle , on a plain ground ", "a large red circle,on a plain ground"]
    plain = "a large red circle, on a plain ground"
    assert torch.equal(tokenize(variants), tokenize([plain, plain]))
    assert decode(tokenize(variants)) == [plain, plain]


def test_an_empty_caption_is_a_start_and_ends():
    assert spell(tokenize([""])[0]) == [START] + [END] * (LENGTH - 1)
    assert decode(tokenize([""])) == [""] and tokenize([]).shape == (0, LENGTH)


def test_unknown_words_are_read_in_pieces_with_a_warning_of_one_line():
    with pytest.warns(UserWarning) as caught:
        tokens = tokenize(["a stray whale", "a whale.", "a red circle"])
    assert len(caught) == 1 and caught[0].filename == __file__
    assert str(caught[0].message) == (
        "unknown words, read in untrained pieces: 'stray', 'whale', '.' "
        "(course.data.captions.VOCABULARY lists the known ones)"
    )
    assert decode(tokens) == ["a stray whale", "a whale", "a red circle"]
    assert spell(tokens[0])[2] == "st-" and spell(tokens[2])[:5] == [START, "a", "red", "circle", END]  # as in "star"
    whale = spell(tokens[1])[2:]
    whale = whale[: whale.index(END)]
    assert len(whale) > 1 and all(piece.endswith("-") for piece in whale[:-1])
    assert "".join(piece.removesuffix("-") for piece in whale) == "whale"


def test_letters_of_no_word_are_the_token_for_the_unknown():
    with pytest.warns(UserWarning, match="'7', 'zz'"):
        assert spell(tokenize(["red 7 zz"], 8)[0]) == [START, "red"] + [END] * 6
    with pytest.warns(UserWarning):
        assert decode(tokenize(["red 7 circle"])) == ["red"]  # as documented: to the first END


def test_bad_captions_are_refused_in_one_line():
    with pytest.raises(UserError, match=r"a list of sentences, not one sentence: write \['a red circle'\]$"):
        tokenize("a red circle")
    with pytest.raises(UserError, match=r"has 31 words .*; at most 30 fit$"):
        tokenize(["a", "red " * 31])
    assert spell(tokenize(["red " * 30])[0]) == [START] + ["red"] * 30 + [END]
    with pytest.raises(UserError, match="at least 2 tokens, its start and its end, not 1$"):
        tokenize([""], 1)
    for function, tokens in ((spell, torch.tensor([3, len(TOKENS)])), (decode, torch.tensor([[-1]]))):
        with pytest.raises(UserError, match=f"must lie in 0 .. {len(TOKENS) - 1}"):
            function(tokens)
    captions = tokenize(["a red circle", "a blue star"])
    with pytest.raises(UserError, match=r"spell takes one caption \(M,\), not \(2, 32\)$"):
        spell(captions)
    with pytest.raises(UserError, match=r"decode takes captions \(B, M\), not \(32,\)$"):
        decode(captions[0])


# The encoder


def encoder(dtype=torch.float64):
    torch.manual_seed(0)
    model = TextEncoder(9, 7, width=16, depth=2, heads=2)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.to(dtype)


def test_the_activation_is_close_to_a_gelu_and_has_its_limits():
    x = torch.linspace(-8, 8, 1001, dtype=torch.float64)
    # sigmoid(1.702 x) is the logistic curve nearest to the normal distribution: 0.0095 away at most, times x
    assert (QuickGELU()(x) - nn.functional.gelu(x)).abs().max() < 0.021
    assert QuickGELU()(x)[-1].item() == pytest.approx(8, abs=1e-4) and QuickGELU()(x)[0].abs() < 1e-4


def test_a_state_depends_on_its_own_token_and_on_those_before_it():
    """By the derivatives of all states with respect to all tokens' vectors."""
    model, tokens = encoder(), torch.tensor([[0, 3, 8, 8, 2, 5, 1]])
    vectors = model.token(tokens).detach()

    def states(vectors):
        handle = model.token.register_forward_hook(lambda *_: vectors)
        try:
            return model(tokens)
        finally:
            handle.remove()

    slopes = torch.autograd.functional.jacobian(states, vectors)[0, :, :, 0].abs().amax((1, 3))  # (states, tokens)
    assert (slopes.triu(1) == 0).all() and (slopes + slopes.T > 1e-6).all()


@torch.no_grad()
def test_the_same_token_elsewhere_has_another_state_and_the_beginning_does_not_hang_on_the_length():
    model = encoder()
    tokens = torch.full((1, 7), 4)
    states = model(tokens)[0]
    assert (states[1:] - states[:-1]).abs().amax(1).min() > 1e-3
    assert torch.allclose(model(tokens[:, :3])[0], states[:3], atol=1e-12)  # the same sums, perhaps in another order


def test_every_parameter_learns_from_the_start():
    torch.manual_seed(0)
    model = TextEncoder(9, 7, width=16, depth=2, heads=2)
    (model(torch.arange(7)[None]) * torch.randn(7, 16)).sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())


def test_bad_tokens_and_sizes_are_refused_in_one_line():
    model = encoder()
    for shape in ((1, 8), (1, 0), (7,), (1, 1, 1)):
        with pytest.raises(UserError, match="M from 1 to 7, not"):
            model(torch.zeros(shape, dtype=torch.int64))
    for bad in (9, -1):
        with pytest.raises(UserError, match="must lie in 0 .. 8, not"):
            model(torch.tensor([[0, bad]]))
    with pytest.raises(UserError, match="int64"):
        model(torch.zeros(1, 3))
    with pytest.raises(UserError, match="10 channels do not divide by 4 heads"):
        TextEncoder(9, 7, width=10)
