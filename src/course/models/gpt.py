"""GPT: a decoder-only transformer that predicts the next code of a sequence (Radford et al. 2019, "GPT-2")."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from course import UserError
from course.models.choose import check_choice, choose
from course.models.quantise import check_codes


class Cache:
    """Keys and values of all positions so far, for every block: what attention needs of the past.

    Args:
        gpt: whose sequences will be continued.
        count: how many sequences at once.
    """

    def __init__(self, gpt: GPT, count: int):
        like = gpt.token.weight
        shape = (count, gpt.heads, gpt.length, gpt.width // gpt.heads)
        self.keys, self.values = ([like.new_zeros(shape) for _ in gpt.blocks] for _ in range(2))
        self.length = 0  # positions that are filled

    @property
    def bytes(self) -> int:
        """Memory that it takes."""
        return sum(x.numel() * x.element_size() for x in self.keys + self.values)


class CausalAttention(nn.Module):
    """Self-attention in which a position sees itself and what comes before it.

    Args:
        width: channels.
        heads: how many; ``width`` must divide by them.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        if heads < 1 or width % heads:
            raise UserError(f"{width} channels do not divide by {heads} heads")
        self.heads = heads
        self.to_qkv, self.to_out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, cache: Cache | None, block: int) -> Tensor:  # (B, N, C) -> (B, N, C)
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in self.to_qkv(x).chunk(3, -1))
        past = 0
        if cache is not None:
            past = cache.length
            for memory, new in ((cache.keys[block], k), (cache.values[block], v)):
                memory[:, :, past : past + new.shape[2]] = new
            k, v = (memory[block][:, :, : past + x.shape[1]] for memory in (cache.keys, cache.values))
        scores = q * q.shape[-1] ** -0.5 @ k.transpose(2, 3)  # (B, heads, N, past + N)
        if x.shape[1] > 1:  # row i stands at position past + i; what comes after it is hidden
            future = torch.ones(scores.shape[2:], dtype=torch.bool, device=x.device).triu(past + 1)
            scores = scores.masked_fill(future, -torch.inf)
        out = scores.softmax(-1).to(v.dtype) @ v
        return self.to_out(out.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention between positions, then two linear layers at each; normalisation comes before each of them."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), CausalAttention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, cache: Cache | None, block: int) -> Tensor:  # (B, N, C) -> (B, N, C)
        x = x + self.attention(self.norm1(x), cache, block)
        return x + self.feed(self.norm2(x))


class GridPlaces(nn.Module):
    """Positions of a prefix and of a grid of codes: the sum of a vector for the row and one for the column.

    Which codes lie above each other would otherwise have to be learnt pair by pair.  A prefix that is a coarser grid
    over the same picture uses the same rows and columns, so that "the condition at my own place" is near at hand.

    Args:
        width: channels.
        prefix: (rows, columns) of the prefix; each must divide the grid's, (1, 1) is a single token.
        grid: (rows, columns) of the codes.
    """

    def __init__(self, width: int, prefix: tuple[int, int], grid: tuple[int, int]):
        super().__init__()
        if any(side < 1 or large % side for side, large in zip(prefix, grid)):
            raise UserError(f"a prefix of {prefix[0]}x{prefix[1]} does not divide a grid of {grid[0]}x{grid[1]}")
        self.prefix = prefix
        self.rows, self.columns = (nn.Parameter(torch.zeros(side, width)) for side in grid)
        self.mark = nn.Parameter(torch.zeros(width))  # tells the prefix from the codes

    @property
    def weight(self) -> Tensor:
        """The table of all positions in their order: (prefix + grid, width)."""
        coarse = (axis.unflatten(0, (side, -1)).mean(1) for axis, side in zip((self.rows, self.columns), self.prefix))
        told, codes = (rows[:, None] + columns for rows, columns in (coarse, (self.rows, self.columns)))
        return torch.cat([told.flatten(0, 1) + self.mark, codes.flatten(0, 1)])


class GPT(nn.Module):
    """Logits of the next code at every position of a sequence.

    A sequence begins with a prefix that says what is wanted (a start token, a class, the codes of a segmentation map)
    and goes on with the codes themselves.  Prefix tokens have numbers of their own, from ``entries`` on.

    Args:
        entries: K, how many codes can be predicted: numbers 0 .. K - 1.
        others: how many further tokens a prefix can hold: numbers K .. K + others - 1.
        length: most positions of a sequence.
        width: channels.
        depth: blocks.
        heads: of each block's attention.
        places: makes the vectors of the positions, ``weight`` (at least length, width); by default each learns
            one of its own, as in GPT-2.

    Raises:
        UserError: fewer places than the length, of another width, or a width that does not divide by the heads.
    """

    def __init__(
        self,
        entries: int,
        others: int,
        length: int,
        width: int = 128,
        depth: int = 4,
        heads: int = 4,
        places: nn.Module | None = None,
    ):
        super().__init__()
        self.entries, self.others, self.length, self.width, self.heads = entries, others, length, width, heads
        self.token = nn.Embedding(entries + others, width)
        self.position = nn.Embedding(length, width) if places is None else places
        count, numbers = self.position.weight.shape
        if count < length or numbers != width:
            raise UserError(f"places must be at least {length} vectors of {width} numbers, not {count} of {numbers}")
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, entries, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:  # layers that add to the stream start smaller the more of them there are
                added = name.endswith(("to_out.weight", "feed.2.weight"))
                nn.init.normal_(parameter, std=0.02 / ((2 * depth) ** 0.5 if added else 1))
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, tokens: Tensor, cache: Cache | None = None) -> Tensor:
        """(B, N) int64 -> (B, N, K): row n tells what follows token n.

        Args:
            tokens: of a whole sequence, or with a cache only those that are new.
            cache: filled with the new positions.

        Raises:
            UserError: no tokens, too many, or one that does not exist.
        """
        past = 0 if cache is None else cache.length
        if tokens.ndim != 2 or tokens.shape[1] == 0:
            raise UserError(f"GPT continues sequences (B, N) of one token or more, not {tuple(tokens.shape)}")
        if past + tokens.shape[1] > self.length:
            raise UserError(f"a sequence of {past + tokens.shape[1]} is longer than the {self.length} of this GPT")
        check_codes(tokens, self.entries + self.others)
        x = self.token(tokens) + self.position.weight[past : past + tokens.shape[1]]  # (B, N, C)
        for number, block in enumerate(self.blocks):
            x = block(x, cache, number)
        if cache is not None:
            cache.length += tokens.shape[1]
        return self.out(self.norm(x))


def generate(
    gpt: GPT,
    prefix: Tensor,
    count: int,
    *,
    cached: bool = True,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
) -> Iterator[Tensor]:
    """Continue sequences code by code.

    Args:
        gpt: in evaluation mode.
        prefix: (B, P) int64, P >= 1: the condition, and codes that are known already if there are any.
        count: how many codes to draw, at least 1.
        cached: keep keys and values of the past, so that a step computes one position; otherwise each step computes all
            of them again, for the same result.
        temperature, top_k, top_p, generator: as for :func:`course.models.choose.choose`.

    Yields:
        (B, P + 1), (B, P + 2), ..., (B, P + count) int64, after each draw.

    Raises:
        UserError, at the call: an empty prefix or tokens that do not exist, no codes to draw, a sequence longer than
            the GPT's, or a bad temperature, top_k or top_p.
    """
    check_choice(temperature, top_k, top_p)
    check_sequence(gpt, prefix, count)

    @torch.no_grad()
    def draws() -> Iterator[Tensor]:
        cache, tokens, new = (Cache(gpt, len(prefix)) if cached else None), prefix, prefix
        for _ in range(count):
            logits = gpt(new if cached else tokens, cache)[:, -1]
            new = choose(logits, temperature=temperature, top_k=top_k, top_p=top_p, generator=generator)[:, None]
            tokens = torch.cat([tokens, new], 1)
            yield tokens

    return draws()


def check_sequence(gpt: GPT, prefix: Tensor, count: int) -> None:
    """Raise UserError if the GPT cannot continue this prefix by so many codes."""
    if prefix.ndim != 2 or prefix.shape[1] == 0:
        raise UserError(f"the prefix is empty (shape {tuple(prefix.shape)}): give at least a start token, (B, 1)")
    check_codes(prefix, gpt.entries + gpt.others)
    if count < 1:
        raise UserError(f"there must be at least 1 code to draw, not {count}")
    if prefix.shape[1] + count - 1 > gpt.length:
        raise UserError(f"{prefix.shape[1]} + {count} codes are more than this GPT's {gpt.length} positions")


@torch.no_grad()
def slide(
    gpt: GPT,
    prefix: Callable[[int, int], Tensor],
    size: tuple[int, int],
    window: tuple[int, int],
    *,
    stride: int = 1,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
) -> Iterator[tuple[int, int, Tensor]]:
    """Draw a map of codes larger than the GPT has ever seen, by a sliding window (Esser et al. 2021, section 3.2).

    Each code is drawn with the window around it as its world: whatever lies outside is as if it were not there.  This
    is justified where what a code should be depends on its surroundings and the condition alone, not on where it is.

    Args:
        gpt: in evaluation mode, trained on maps of the window's size.
        prefix: (top, left) of the window -> (B, P) int64, the condition of that window, of one shape for all.
        size: (H, W) of the map.
        window: (h, w), at most (H, W).
        stride: windows begin at multiples of it, for conditions with a coarser grid of their own.
        temperature, top_k, top_p, generator: as for :func:`course.models.choose.choose`.

    Yields:
        (top, left, codes (B, H, W)) after each draw, the same tensor again and again; what is still to come is -1.

    Raises:
        UserError, at the call: a window larger than the map, a stride that does not fit, or what `generate` raises.
    """
    check_choice(temperature, top_k, top_p)
    if any(small > large or small < 1 for small, large in zip(window, size)):
        raise UserError(f"a window of {window[0]}x{window[1]} does not fit into a map of {size[0]}x{size[1]} codes")
    if stride < 1 or any((large - small) % stride or stride > small < large for small, large in zip(window, size)):
        whole = f"a map of {size[0]}x{size[1]}"
        raise UserError(f"windows of {window[0]}x{window[1]} at multiples of {stride} do not cover {whole} to its end")
    start = prefix(0, 0)
    check_sequence(gpt, start, window[0] * window[1])
    options = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "generator": generator}

    @torch.no_grad()
    def draws() -> Iterator[tuple[int, int, Tensor]]:
        codes = start.new_full((len(start), *size), -1)
        for row in range(size[0]):
            for column in range(size[1]):
                top, left = (_begin(*place, stride) for place in zip((row, column), window, size))
                inside = codes[:, top : top + window[0], left : left + window[1]].flatten(1)
                known = inside[:, : (row - top) * window[1] + column - left]  # before the new code, within the window
                for tokens in generate(gpt, torch.cat([prefix(top, left), known], 1), 1, **options):
                    codes[:, row, column] = tokens[:, -1]
                yield top, left, codes

    return draws()


def _begin(at: int, window: int, whole: int, stride: int) -> int:
    """Where on one axis the window begins that has ``at`` near its middle, at a multiple of the stride."""
    middle = (at - window // 2) // stride * stride
    first = -((window - 1 - at) // stride) * stride  # of the windows that still hold `at`
    return min(max(0, middle, first), whole - window)
