"""Attention: every position looks at every other one (Vaswani et al. 2017, eq. 1)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from course import UserError
from course.models.layers import norm, zeroed


class Attention(nn.Module):
    """Scaled dot-product attention with several heads.

    Queries come from x; keys and values from the context, which is x itself unless another one is given.  What happens
    between the projections is the ``processor``, a plain function that may be replaced (chapter 10 does).

    Args:
        channels: of x.
        heads: how many; ``channels`` must divide by them.
        context_channels: of the context, if it differs from x.
    """

    def __init__(self, channels: int, heads: int = 4, context_channels: int | None = None):
        super().__init__()
        if heads < 1 or channels % heads:
            raise UserError(f"{channels} channels do not divide by {heads} heads")
        self.heads, self.processor = heads, attend
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(context_channels or channels, channels, bias=False)
        self.to_v = nn.Linear(context_channels or channels, channels, bias=False)
        self.to_out = nn.Linear(channels, channels)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:  # (B, N, C), (B, M, C') -> (B, N, C)
        return self.processor(self, x, x if context is None else context)


def attend(attention: Attention, x: Tensor, context: Tensor) -> Tensor:
    """The ordinary processor: softmax(Q K^T / sqrt(channels of a head)) V, head by head."""
    q, k, v = attention.to_q(x), attention.to_k(context), attention.to_v(context)
    q, k, v = (y.unflatten(-1, (attention.heads, -1)).transpose(1, 2) for y in (q, k, v))  # (B, heads, N or M, c)
    scores = q * q.shape[-1] ** -0.5 @ k.transpose(2, 3)  # (B, heads, N, M)
    # Two matrix products: for some hundred positions, on a CPU in bfloat16, forward and backward, several times faster
    # than PyTorch's fused attention (benchmarks/attention_speed.py)
    out = scores.softmax(-1).to(v.dtype) @ v
    return attention.to_out(out.transpose(1, 2).flatten(2))


class SelfAttention2d(nn.Module):
    """Attention between all positions of a feature map, added to it; starts as nothing.

    Args:
        channels: of the feature map.
        heads: how many; ``channels`` must divide by them.
        groups, eps: of the group norm.
    """

    def __init__(self, channels: int, heads: int = 4, groups: int = 32, eps: float = 1e-5):
        super().__init__()
        self.norm, self.attention = norm(channels, groups, eps), Attention(channels, heads)
        zeroed(self.attention.to_out)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:  # (B, C, H, W) -> (B, C, H, W)
        # the context is not used: the U-Net calls this as it calls a SpatialTransformer
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # (B, H W, C)
        return x + self.attention(tokens).transpose(1, 2).unflatten(2, x.shape[2:])


class FeedForward(nn.Module):
    """Two linear layers at each position; between them one half of the channels opens or shuts the other half.

    This is FFN_GEGLU (Shazeer 2020, *GLU Variants Improve Transformer*, eq. 6), here with biases.

    Args:
        channels: of input and output; there are four times as many between the layers.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.to_gated, self.to_out = nn.Linear(channels, 2 * 4 * channels), nn.Linear(4 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:  # (B, N, C) -> (B, N, C)
        value, gate = self.to_gated(x).chunk(2, -1)  # (B, N, 4 C) each
        return self.to_out(value * functional.gelu(gate))


class SpatialTransformer(nn.Module):
    """A transformer block at the positions of a feature map, which also look at a context, such as the words of a text.

    Self-attention, cross-attention and a gated feed-forward layer, each added to its input (Rombach et al. 2022,
    section 3.3; in this order in Stable Diffusion).  The last convolution starts at zero: at first the map passes
    unchanged.

    Args:
        channels: of the feature map.
        heads: of both attentions; ``channels`` must divide by them.
        context_channels: of the context's tokens.
        groups: of the group norm.
    """

    def __init__(self, channels: int, heads: int, context_channels: int, groups: int = 32):
        super().__init__()
        self.norm, self.conv_in = norm(channels, groups, 1e-6), nn.Conv2d(channels, channels, 1)
        self.norm1, self.self_attention = nn.LayerNorm(channels), Attention(channels, heads)
        self.norm2, self.cross_attention = nn.LayerNorm(channels), Attention(channels, heads, context_channels)
        self.norm3, self.feed = nn.LayerNorm(channels), FeedForward(channels)
        self.conv_out = zeroed(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:  # (B, C, H, W), (B, M, C') -> (B, C, H, W)
        tokens = self.conv_in(self.norm(x)).flatten(2).transpose(1, 2)  # (B, H W, C)
        tokens = tokens + self.self_attention(self.norm1(tokens))
        tokens = tokens + self.cross_attention(self.norm2(tokens), context)
        tokens = tokens + self.feed(self.norm3(tokens))
        return x + self.conv_out(tokens.transpose(1, 2).unflatten(2, x.shape[2:]))
