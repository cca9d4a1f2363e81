"""Our text encoder and tokenizer as transformers' classes for CLIP."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from course.data.tokens import IDS, LENGTH, MERGES
from course.export.names import rename
from course.models.text import TextEncoder

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTokenizer

_NAMES = (  # our names, as patterns -> theirs
    (r"^token\.", "embeddings.token_embedding."),
    (r"^position\.", "embeddings.position_embedding."),
    (r"^norm\.", "final_layer_norm."),
    (r"^blocks\.", "encoder.layers."),
    (r"\.norm([12])\.", r".layer_norm\1."),
    (r"\.attention\.to_", ".self_attn."),
    (r"\.self_attn\.out\.", ".self_attn.out_proj."),
    (r"\.feed\.0\.", ".mlp.fc1."),
    (r"\.feed\.2\.", ".mlp.fc2."),
)


def text_encoder(model: TextEncoder) -> CLIPTextModel:
    """A text encoder as transformers' CLIPTextModel, with equal results: its ``last_hidden_state`` is our output.

    Returns:
        In evaluation mode, with copies of the weights, in the model's type and on the CPU.
    """
    from transformers import CLIPTextConfig, CLIPTextModel

    theirs = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=model.words,
            hidden_size=model.width,
            intermediate_size=4 * model.width,
            projection_dim=model.width,
            num_hidden_layers=len(model.blocks),
            num_attention_heads=model.heads,
            max_position_embeddings=model.length,
            hidden_act="quick_gelu",
            bos_token_id=model.words - 2,
            eos_token_id=model.words - 1,
            pad_token_id=model.words - 1,
        )
    )
    inner = getattr(theirs, "text_model", theirs)  # one class inside another in older versions of transformers
    inner.to(model.token.weight.dtype).load_state_dict(renamed(model))  # strict: nothing missing, nothing left over
    return theirs.eval()


def renamed(model: TextEncoder) -> dict[str, Tensor]:
    """The model's tensors under the names of transformers."""
    tensors = {}
    for key, value in rename(model.state_dict(), _NAMES).items():
        if ".qkv." in key:  # one layer here, three there
            tensors |= {key.replace("qkv", f"{part}_proj"): third for part, third in zip("qkv", value.chunk(3))}
        else:
            tensors[key] = value
    return tensors


def tokenizer(folder: Path | str) -> CLIPTokenizer:
    """The tokenizer of `course.data.tokens` as transformers' CLIPTokenizer, with equal results.

    Args:
        folder: where vocab.json and merges.txt go, its files; it is made if it does not exist.
    """
    from transformers import CLIPTokenizer

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(IDS), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in MERGES)]  # a reader skips the first line
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return CLIPTokenizer.from_pretrained(folder, local_files_only=True, model_max_length=LENGTH)
