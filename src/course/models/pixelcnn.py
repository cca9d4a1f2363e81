"""PixelCNN: each position of a map of codes is predicted from those before it, by masked convolutions.

"Before" is reading order: all rows above, and the own row to the left.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from course import UserError
from course.models.choose import check_choice, choose
from course.models.layers import zeroed
from course.models.quantise import check_codes

KINDS = ("A", "B")


def raster_mask(kernel: int, kind: str) -> Tensor:
    """(kernel, kernel) of 0 and 1: what comes before the centre in reading order; kind B lets the centre in as well.

    The first layer is of kind A, for its input at the centre is the answer; later ones are of kind B, for their input
    there has not seen it (van den Oord et al. 2016a, figure 2).
    """
    if kernel % 2 == 0 or kind not in KINDS:
        raise UserError(f"a mask has an odd side and kind A or B, not {kernel} and {kind!r}")
    mask, centre = torch.zeros(kernel, kernel), kernel // 2
    mask[:centre] = 1
    mask[centre, : centre + (kind == "B")] = 1
    return mask


class MaskedConv(nn.Conv2d):
    """A convolution that sees only what comes before: its kernel is multiplied by a mask of zeros and ones."""

    def __init__(self, before: int, after: int, mask: Tensor):
        super().__init__(before, after, mask.shape, padding=(mask.shape[0] // 2, mask.shape[1] // 2))
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:  # (B, before, H, W) -> (B, after, H, W)
        return self._conv_forward(x, self.weight * self.mask, self.bias)


class BlindPixelCNN(nn.Module):
    """The first PixelCNN: one stack of masked convolutions, which never sees some of the past (the blind spot).

    Args:
        entries: K, how many codes there are.
        width: channels.
        layers: masked convolutions of kind B after the one of kind A.
        kernel: side of the kernels, odd.
    """

    def __init__(self, entries: int, width: int = 64, layers: int = 5, kernel: int = 3):
        super().__init__()
        self.embedding = nn.Embedding(entries, width)
        self.first = MaskedConv(width, width, raster_mask(kernel, "A"))
        self.layers = nn.ModuleList(MaskedConv(width, width, raster_mask(kernel, "B")) for _ in range(layers))
        self.out = nn.Conv2d(width, entries, 1)

    def features(self, x: Tensor) -> Tensor:
        """The stack on embedded codes (B, width, H, W), for looking at what it sees."""
        h = self.first(x)
        for layer in self.layers:
            h = h + layer(functional.relu(h))
        return self.out(functional.relu(h))

    def forward(self, codes: Tensor, label: None = None) -> Tensor:  # (B, H, W) int64 -> (B, K, H, W), logits
        check_codes(codes, self.embedding.num_embeddings)
        if label is not None:
            raise UserError("the blind PixelCNN knows no classes")
        return self.features(self.embedding(codes).movedim(-1, 1))


class GatedLayer(nn.Module):
    """One layer of both stacks (van den Oord et al. 2016b, figure 2).

    The vertical stack sees whole rows above; the horizontal one the own row to the left, and what the vertical one
    tells it.  Together that is all of the past: no blind spot.

    Args:
        width: channels of each stack.
        kernel: side of the vertical kernel, odd; the horizontal one is as wide and has one row.
        first: whether the input is the codes themselves, which the own position must not see (mask A).
        classes: how many classes a condition has; 0 for none.
    """

    def __init__(self, width: int, kernel: int, first: bool, classes: int):
        super().__init__()
        centre, self.first = kernel // 2, first
        # In the vertical stack the own row is past as well once its features come from the rows above (mask B).
        rows = torch.zeros(kernel, kernel)
        rows[: centre + (not first)] = 1
        self.vertical = MaskedConv(width, 2 * width, rows)
        row = raster_mask(kernel, "A" if first else "B")[centre : centre + 1]
        self.horizontal = MaskedConv(width, 2 * width, row)
        self.across = nn.Conv2d(2 * width, 2 * width, 1)
        self.out = nn.Conv2d(width, width, 1) if first else zeroed(nn.Conv2d(width, width, 1))
        self.label = nn.Embedding(classes, 2 * width) if classes else None

    def told(self, label: Tensor | None) -> Tensor | float:
        """What a class adds at each position: (B, 2 width, 1, 1)."""
        return 0.0 if self.label is None else self.label(label)[:, :, None, None]

    def forward(self, v: Tensor, h: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor]:
        told = self.told(label)  # both stacks (B, width, H, W) -> the same
        down = self.vertical(v)
        made = self.out(gate(self.horizontal(h) + self.across(down) + told))
        # The first layer must not hand on its input: that is the code which is to be predicted.
        return gate(down + told), made if self.first else h + made


def gate(x: Tensor) -> Tensor:
    """tanh of one half of the channels times the sigmoid of the other (van den Oord et al. 2016b, eq. 2)."""
    one, two = x.chunk(2, dim=1)
    return one.tanh() * two.sigmoid()


class PixelCNN(nn.Module):
    """The gated PixelCNN: logits of each code given those before it, and a class if there is one.

    Args:
        entries: K, how many codes there are.
        width: channels of each stack.
        layers: after the first one.
        kernel: side of the kernels, odd.
        classes: how many classes a condition has; 0 for none.
        embedding: codes (B, H, W) -> (B, H, W, width); by default a learnt vector for each code.
    """

    def __init__(
        self,
        entries: int,
        width: int = 64,
        layers: int = 6,
        kernel: int = 3,
        classes: int = 0,
        embedding: nn.Module | None = None,
    ):
        super().__init__()
        self.entries = entries
        self.embedding = nn.Embedding(entries, width) if embedding is None else embedding
        self.layers = nn.ModuleList(GatedLayer(width, kernel, i == 0, classes) for i in range(layers + 1))
        self.out = nn.Sequential(
            nn.ReLU(), nn.Conv2d(width, 4 * width, 1), nn.ReLU(), nn.Conv2d(4 * width, entries, 1)
        )

    def features(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """Logits from embedded codes (B, width, H, W)."""
        v = h = x
        for layer in self.layers:
            v, h = layer(v, h, label)
        return self.out(h)

    def forward(self, codes: Tensor, label: Tensor | None = None) -> Tensor:  # (B, H, W) int64 -> (B, K, H, W)
        check_codes(codes, self.entries)
        self.check_label(label)
        return self.features(self.embedding(codes).movedim(-1, 1), label)

    def check_label(self, label: Tensor | None) -> None:
        """Raise UserError if a class is missing or too much."""
        if (label is None) != (self.layers[0].label is None):
            raise UserError(f"this PixelCNN {'needs a class' if label is None else 'was built without classes'}")


class AsGrey(nn.Module):
    """A pitfall, in place of the embedding: codes as if they were grey values, code / K, in one channel of many.

    It tells the network that code 1 is near code 2, which is not so.
    """

    def __init__(self, entries: int, width: int):
        super().__init__()
        self.entries, self.spread = entries, nn.Linear(1, width)

    def forward(self, codes: Tensor) -> Tensor:  # (B, H, W) -> (B, H, W, width)
        return self.spread(codes[..., None].float() / self.entries)


def generate(
    model: PixelCNN | BlindPixelCNN,
    count: int,
    size: tuple[int, int],
    label: Tensor | None = None,
    *,
    incremental: bool = True,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
) -> Iterator[Tensor]:
    """Draw maps of codes position by position, in reading order.

    Args:
        model: in evaluation mode.
        count: how many maps at once.
        size: (H, W).
        label: (count,), their classes.
        incremental: compute only what is new at each position; needs a :class:`PixelCNN`.  Otherwise the whole network
            runs on the whole map at every position, for the same result.
        temperature, top_k, top_p, generator: as for :func:`course.models.choose.choose`.

    Yields:
        (count, H, W) int64 after each position, the same tensor again and again; what is still to come is 0.

    Raises:
        UserError, at the call: no maps or empty ones, a class that is missing or too much, another number of classes
            than of maps, incremental sampling of another network, or a bad temperature, top_k or top_p.
    """
    check_choice(temperature, top_k, top_p)
    if min(count, *size) < 1:
        raise UserError(f"draw 1 map or more, each of 1x1 codes or more, not {count} of {size[0]}x{size[1]}")
    if isinstance(model, PixelCNN):
        model.check_label(label)
    elif incremental:
        raise UserError(f"incremental sampling needs a PixelCNN, not {type(model).__name__}: set incremental=False")
    if label is not None and label.shape != (count,):
        raise UserError(f"{count} maps need {count} classes, not a tensor {tuple(label.shape)}")

    @torch.no_grad()
    def draws() -> Iterator[Tensor]:
        codes = torch.zeros(count, *size, dtype=torch.int64, device=next(model.parameters()).device)
        walk = _Incremental(model, codes, label) if incremental else None
        options = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "generator": generator}
        for row in range(size[0]):
            for column in range(size[1]):
                logits = walk(row, column) if walk else model(codes, label)[:, :, row, column]
                codes[:, row, column] = choose(logits, **options)
                yield codes

    return draws()


class _Incremental:
    """Remembers every layer's features; a new position costs one column of each horizontal kernel.

    The vertical stack knows rows above only, so it runs once a row, on that row.
    """

    def __init__(self, model: PixelCNN, codes: Tensor, label: Tensor | None):
        self.model, self.codes, self.label = model, codes, label
        width, (count, height, columns) = model.layers[0].vertical.in_channels, codes.shape
        self.reach = model.layers[0].vertical.kernel_size[0] // 2
        # One border of `reach` zeros on the sides that kernels look over: above, left and right.
        shape = (count, width, height + self.reach, columns + 2 * self.reach)
        self.v, self.h = ([codes.new_zeros(shape, dtype=torch.float32) for _ in model.layers] for _ in range(2))
        self.across: list[Tensor] = []
        self.told = [layer.told(label) for layer in model.layers]
        self.kernels = [self._cut(layer) for layer in model.layers]

    def _cut(self, layer: GatedLayer) -> tuple[Tensor, Tensor]:
        """The kernels without the part that the masks leave at zero: rows below, columns to the right."""
        vertical = (layer.vertical.weight * layer.vertical.mask)[:, :, : self.reach + 1]
        horizontal = (layer.horizontal.weight * layer.horizontal.mask)[:, :, 0, : self.reach + 1]
        return vertical, horizontal.flatten(1)  # (2 width, width (reach + 1))

    def __call__(self, row: int, column: int) -> Tensor:
        if column == 0:
            self._row(row)
        at = self.reach + column  # place of the column within the border
        if column:
            self._embed(row, column - 1)
        h = None
        for layer, map_, (_, kernel), across in zip(self.model.layers, self.h, self.kernels, self.across):
            if h is not None:
                map_[:, :, row, at] = h
            seen = map_[:, :, row, at - self.reach : at + 1].flatten(1)
            new = functional.linear(seen, kernel, layer.horizontal.bias) + across[:, :, column]
            made = functional.linear(gate(new), layer.out.weight.flatten(1), layer.out.bias)
            h = made if layer.first else h + made
        return self.model.out(h[:, :, None, None])[:, :, 0, 0]

    def _embed(self, row: int, column: int) -> None:
        """Enter a code that has been chosen: the horizontal stack needs it at once, the vertical one in later rows."""
        x = self.model.embedding(self.codes[:, row, column])
        self.h[0][:, :, row, self.reach + column] = x
        self.v[0][:, :, self.reach + row, self.reach + column] = x

    def _row(self, row: int) -> None:
        """The vertical stack of a new row, and what it tells the horizontal one at each column."""
        if row:
            self._embed(row - 1, self.codes.shape[2] - 1)
        self.across = []
        for number, (layer, (kernel, _)) in enumerate(zip(self.model.layers, self.kernels)):
            rows = self.v[number][:, :, row : row + self.reach + 1]  # the own row is the last one
            down = functional.conv2d(rows, kernel, layer.vertical.bias)[:, :, :1]
            self.across.append((layer.across(down) + self.told[number])[:, :, 0])  # (count, 2 width, W)
            if number + 1 < len(self.v):
                inner = slice(self.reach, self.reach + self.codes.shape[2])
                self.v[number + 1][:, :, self.reach + row, inner] = gate(down + self.told[number])[:, :, 0]
