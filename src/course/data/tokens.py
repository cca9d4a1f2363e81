"""Captions as numbers for a text encoder, by the rules of CLIP's tokenizer (Radford et al. 2021, section 2.4).

A word of our captions is one token.  Any other word falls apart into pieces, down to single letters, as in CLIP: by
byte-pair encoding (Sennrich et al. 2016, algorithm 1).  `course.export.text.tokenizer` writes the same rules to files.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor

from course import UserError
from course.data.captions import VOCABULARY

# The longest captions, of two shapes in detail, have 30 words; with start and end these are 32 tokens
# (tests/unit/test_text.py looks for longer ones).  Three shapes fit in few words only: attention to 48 tokens would
# cost half as much again.
LENGTH = 32
START, END = "<|startoftext|>", "<|endoftext|>"
_CLOSE = "</w>"  # ends every token that ends a word

# What CLIP takes as a word: the ending of an English contraction, letters, one digit, or other marks
_WORD = re.compile(r"'(?:[stmd]|re|ve|ll)|[^\W\d_]+|\d|(?:[^\w\s]|_)+")


def _pieces(word: str, merges: Mapping[tuple[str, str], int]) -> list[str]:
    """The word's letters, joined again and again: of all neighbours that may be joined, those with the lowest rank."""
    symbols = word.encode().decode("latin-1")  # CLIP's letters are bytes
    pieces = [*symbols[:-1], symbols[-1] + _CLOSE]
    while ranks := [(merges[pair], place) for place, pair in enumerate(pairwise(pieces)) if pair in merges]:
        place = min(ranks)[1]
        pieces[place : place + 2] = ["".join(pieces[place : place + 2])]
    return pieces


def _learn(words: Sequence[str]) -> dict[tuple[str, str], int]:
    """Pairs of pieces and their ranks: the most frequent pair first, until each of the words is one piece."""
    merges: dict[tuple[str, str], int] = {}
    while counts := Counter(pair for word in words for pair in pairwise(_pieces(word, merges))):
        merges[max(counts, key=counts.get)] = len(merges)  # among equals the one that is met first
    return merges


MERGES = _learn(VOCABULARY)  # (left, right) -> rank
_letters = sorted({letter for word in VOCABULARY for letter in _pieces(word, {})})
# Token number i is TOKENS[i]: the words in the order of VOCABULARY, then letters and larger pieces; start and end last,
# as in CLIP
_joined = ["".join(pair) for pair in MERGES]
TOKENS = tuple(dict.fromkeys([*(word + _CLOSE for word in VOCABULARY), *_letters, *_joined, START, END]))
IDS = {token: number for number, token in enumerate(TOKENS)}


@cache
def _ids(word: str) -> tuple[int, ...]:
    return tuple(IDS.get(piece, IDS[END]) for piece in _pieces(word, MERGES))


def tokenize(captions: Sequence[str], length: int = LENGTH) -> Tensor:
    """Captions as token numbers: start, one token a word or comma, end, and more ends up to the length.

    The numbers are those of CLIP's tokenizer with our files, for any printable ASCII text but its own START and END.
    Upper case and the width of spaces do not matter.  An unknown word becomes several tokens that training never
    showed, and a letter that none of our words has becomes END, CLIP's token for the unknown.  A warning, one line,
    names the words.

    Args:
        captions: B sentences; an empty one is the null condition.
        length: M, tokens a caption, at least 2.

    Returns:
        (B, M) int64, numbers of TOKENS.

    Raises:
        UserError: one string in place of a list, a length below 2, or a caption that is too long for it.
    """
    if isinstance(captions, str):
        raise UserError(f"captions are a list of sentences, not one sentence: write [{captions!r}]")
    if length < 2:
        raise UserError(f"a caption takes at least 2 tokens, its start and its end, not {length}")
    texts = [_WORD.findall(caption.lower()) for caption in captions]
    if unknown := [*dict.fromkeys(word for text in texts for word in text if word not in VOCABULARY)]:
        known = "course.data.captions.VOCABULARY lists the known ones"
        named = ", ".join(map(repr, unknown))
        warnings.warn(f"unknown words, read in untrained pieces: {named} ({known})", stacklevel=2)
    tokens = torch.full((len(texts), length), IDS[END])
    for row, text in zip(tokens, texts):
        ids = [IDS[START], *(number for word in text for number in _ids(word)), IDS[END]]
        if len(ids) > length:
            counted = "counting commas, and unknown words by the piece"
            raise UserError(f"a caption has {len(ids) - 2} words ({counted}); at most {length - 2} fit")
        row[: len(ids)] = torch.tensor(ids)
    return tokens


def _names(numbers: list[int]) -> list[str]:
    if bad := [number for number in numbers if not 0 <= number < len(TOKENS)]:
        raise UserError(f"tokens must lie in 0 .. {len(TOKENS) - 1}, not {bad[0]}")
    return [TOKENS[number] for number in numbers]


def spell(tokens: Tensor) -> list[str]:
    """What stands at each position of one caption (M,), for labels of attention maps: M strings.

    Start and end are spelt START and END; a piece that does not end its word has a hyphen.

    Raises:
        UserError: several captions at once, or a number of no token.
    """
    if tokens.ndim != 1:
        raise UserError(f"spell takes one caption (M,), not {tuple(tokens.shape)}")
    names = _names(tokens.tolist())
    whole = (START, END)
    return [name if name in whole else name[: -len(_CLOSE)] if name.endswith(_CLOSE) else name + "-" for name in names]


def decode(tokens: Tensor) -> list[str]:
    """The captions (B, M) as text, lower-cased and with single spaces; each ends at its first END.

    Raises:
        UserError: another shape, or a number of no token.
    """
    if tokens.ndim != 2:
        raise UserError(f"decode takes captions (B, M), not {tuple(tokens.shape)}")
    texts = ("".join(_names(row)).split(END)[0] for row in tokens.tolist())
    return [text.removeprefix(START).replace(_CLOSE, " ").replace(" ,", ",").strip() for text in texts]
