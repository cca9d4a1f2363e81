"""The text encoder of Stable Diffusion 1: the text half of CLIP (Radford et al. 2021, section 2.4)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from course import UserError
from course.models.gpt import Block
from course.models.quantise import check_codes


class QuickGELU(nn.Module):
    """x sigmoid(1.702 x), an approximation of the GELU (Hendrycks & Gimpel 2016, section 2); CLIP uses it."""

    def forward(self, x: Tensor) -> Tensor:  # any shape, kept
        return x * torch.sigmoid(1.702 * x)


class TextEncoder(nn.Module):
    """A caption as a sequence of vectors, one for each token: what cross-attention looks at.

    It is a GPT without the last layer.  A token knows itself and what stands before it; the end of a caption knows all.

    Args:
        words: how many tokens there are; the last two are start and end, as in `course.data.tokens.TOKENS`.
        length: most tokens of a caption.
        width: channels.
        depth: blocks.
        heads: of each block's attention.
    """

    def __init__(self, words: int, length: int, width: int = 128, depth: int = 2, heads: int = 4):
        super().__init__()
        self.words, self.length, self.width, self.heads = words, length, width, heads
        self.token, self.position = nn.Embedding(words, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        for block in self.blocks:
            block.feed[1] = QuickGELU()  # all that differs from GPT's
        self.norm = nn.LayerNorm(width)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:  # as in GPT: layers that add to the stream start smaller the more there are
                added = name.endswith(("to_out.weight", "feed.2.weight"))
                nn.init.normal_(parameter, std=0.02 / ((2 * depth) ** 0.5 if added else 1))
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, M) int64 -> (B, M, width).

        Raises:
            UserError: no tokens, too many, or one that does not exist.
        """
        if tokens.ndim != 2 or not 1 <= tokens.shape[1] <= self.length:
            raise UserError(f"captions are (B, M) tokens, M from 1 to {self.length}, not {tuple(tokens.shape)}")
        check_codes(tokens, self.words)
        x = self.token(tokens) + self.position.weight[: tokens.shape[1]]  # (B, M, width)
        for number, block in enumerate(self.blocks):
            x = block(x, None, number)  # no memory of earlier calls: a caption comes whole
        return self.norm(x)
