"""GPT against Hugging Face's GPT-2 on the same weights, moved there by renaming keys."""

import inspect
import re

import pytest
import torch
from torch import nn

from course.models.gpt import GPT, Cache

ENTRIES, OTHERS, LENGTH, WIDTH, DEPTH, HEADS = 23, 5, 20, 32, 3, 4
RULES = (
    (r"^token\.", "transformer.wte."),
    (r"^position\.", "transformer.wpe."),
    (r"^norm\.", "transformer.ln_f."),
    (r"^blocks\.", "transformer.h."),
    (r"\.norm1\.", ".ln_1."),
    (r"\.norm2\.", ".ln_2."),
    (r"\.attention\.to_qkv\.", ".attn.c_attn."),
    (r"\.attention\.to_out\.", ".attn.c_proj."),
    (r"\.feed\.0\.", ".mlp.c_fc."),
    (r"\.feed\.2\.", ".mlp.c_proj."),
)


@pytest.fixture(scope="module")
def pair():
    """Our GPT with random weights, none of them zero, and theirs with the same."""
    from transformers import GPT2Config, GPT2LMHeadModel  # takes seconds: not while tests are collected

    torch.manual_seed(0)
    ours = GPT(ENTRIES, OTHERS, LENGTH, WIDTH, DEPTH, HEADS).eval()
    for name, parameter in ours.named_parameters():
        nn.init.normal_(parameter, mean=float("norm" in name and name.endswith("weight")), std=0.2)
    theirs = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=ENTRIES + OTHERS,
            n_positions=LENGTH,
            n_embd=WIDTH,
            n_layer=DEPTH,
            n_head=HEADS,
            activation_function="gelu_new",
            tie_word_embeddings=False,
            bos_token_id=0,
            eos_token_id=0,
        )
    ).eval()
    renamed = {}
    for key, value in ours.state_dict().items():
        for pattern, replacement in RULES:
            key = re.sub(pattern, replacement, key)
        # their layers inside the blocks are matrices (in, out)
        renamed[key] = value.T if value.ndim == 2 and ".h." in key else value
    # theirs predicts every token; of ours nobody asks for the ones that only a prefix can hold
    renamed["lm_head.weight"] = torch.cat([renamed.pop("out.weight"), torch.zeros(OTHERS, WIDTH)])
    missing, unexpected = theirs.load_state_dict(renamed, strict=False)
    assert unexpected == [] and all(key.endswith((".attn.bias", ".masked_bias")) for key in missing)
    return ours, theirs


def tokens(count=3, length=LENGTH):
    return torch.randint(0, ENTRIES + OTHERS, (count, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("length", [1, 2, LENGTH])
@torch.no_grad()
def test_the_same_weights_give_the_same_logits(pair, length):
    ours, theirs = pair
    mine, reference = ours(tokens(length=length)), theirs(tokens(length=length)).logits[..., :ENTRIES]
    assert reference.abs().max() > 1  # so that the tolerance means something
    assert (mine - reference).abs().max() <= 1e-5  # float32, a dozen layers, numbers of a few units


@torch.no_grad()
def test_in_double_precision_nothing_is_left_of_the_difference(pair):
    ours, theirs = (model.double() for model in pair)
    difference = ours(tokens()) - theirs(tokens()).logits[..., :ENTRIES]
    for model in pair:
        model.float()
    assert difference.abs().max() <= 1e-12  # the same operations in another order


@pytest.mark.parametrize("steps", [[1] * LENGTH, [6] + [1] * 14, [3, 4, 13]])
@torch.no_grad()
def test_remembered_keys_and_values_give_the_same_logits(pair, steps):
    """Of prefixes of several lengths and of single codes; theirs has a memory as well."""
    ours, theirs = pair
    whole, cache, memory = theirs(tokens()).logits[..., :ENTRIES], Cache(ours, 3), None
    name = "cache" if "cache" in inspect.signature(theirs.forward).parameters else "past_key_values"  # before 5.24
    for number, part in enumerate(tokens().split(steps, 1)):
        past = sum(steps[:number])
        mine = ours(part, cache)
        answer = theirs(part, **{name: memory}, use_cache=True)
        memory = answer.past_key_values
        for reference in (whole[:, past : past + part.shape[1]], answer.logits[..., :ENTRIES]):
            assert (mine - reference).abs().max() <= 1e-5  # as above
        assert cache.length == past + part.shape[1]


@torch.no_grad()
def test_no_logit_depends_on_what_comes_later(pair):
    ours, _ = pair
    before = ours(tokens())
    for place in range(LENGTH):
        other = tokens()
        other[:, place] = (other[:, place] + 1) % (ENTRIES + OTHERS)
        after = ours(other)
        assert torch.equal(after[:, :place], before[:, :place])
        # from the place itself on every position sees it
        assert (after[:, place:] != before[:, place:]).any(-1).all()
