"""Vector quantisation: each vector of a feature map is replaced by the nearest one of a small codebook."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from course import UserError
from course.models.autoencoder import Encoded

FORGET = 0.99  # of the running counts and sums: a code's past fades within some hundred batches


def nearest(vectors: Tensor, codebook: Tensor) -> Tensor:
    """The number of the nearest codebook entry, by one matrix product.

    |h - e|^2 = |h|^2 - 2 h.e + |e|^2, and |h|^2 is the same for every entry e, so it decides nothing.  Spelt out by
    broadcasting, the differences h - e alone would fill N K D numbers; here N K suffice.

    Args:
        vectors: (..., D).
        codebook: (K, D).

    Returns:
        (...) int64, 0 .. K - 1; the first one of equally near entries.
    """
    flat = vectors.flatten(0, -2)  # (N, D)
    return torch.addmm((codebook**2).sum(1), flat, codebook.T, alpha=-2).argmin(1).view(vectors.shape[:-1])


def straight_through(h: Tensor, e: Tensor) -> Tensor:
    """e in the forward pass; in the backward pass h receives e's gradient as if nothing had been in between."""
    return h + (e - h).detach()


class VectorQuantiser(nn.Module):
    """The VQ-VAE's bottleneck (van den Oord et al. 2017, eq. 1 to 3).

    In training mode with gradients it also keeps count of how often each entry is chosen, as batch normalisation keeps
    statistics, and moves dead entries onto vectors of the batch; so the first batch fills the whole codebook.

    Args:
        entries: K, how many vectors the codebook has.
        dim: D, of each.
        codebook: "gradient" moves the entries by a loss of their own; "ema" sets each to the running mean of the
            vectors that chose it (appendix A.1), which has no loss.
        commitment: beta, weight of the pull of the encoder towards its entry.
        restart: entries chosen less often than this part of an even share (1 / K) are dead and move to where vectors
            are; 0 leaves them where they are.

    Raises:
        UserError: a codebook of less than two entries, or of an unknown kind.
    """

    width = 1  # numbers that the encoder gives for each number of the code

    def __init__(self, entries: int, dim: int, codebook: str = "ema", commitment: float = 0.25, restart: float = 0.05):
        super().__init__()
        if entries < 2:
            raise UserError(f"a codebook has at least 2 entries, not {entries}")
        if codebook not in ("gradient", "ema"):
            raise UserError(f"a codebook learns by gradient or ema, not {codebook!r}")
        self.commitment, self.learns, self.restart = commitment, codebook, restart
        start = torch.randn(entries, dim) * dim**-0.5
        if codebook == "gradient":
            self.codebook = nn.Parameter(start)
        else:
            self.register_buffer("codebook", start)
        self.register_buffer("chosen", torch.zeros(entries))  # running share of vectors that chose each entry
        self.register_buffer("sums", torch.zeros(entries, dim))  # and the running sum of those vectors, by share

    def forward(self, h: Tensor) -> Encoded:  # (B, D, h, w) -> z (B, D, h, w), loss (B,), codes (B, h, w)
        with torch.autocast(h.device.type, enabled=False):  # eight bits of mantissa cannot tell near entries apart
            h = h.float()
            vectors = h.movedim(1, -1)  # (B, h, w, D)
            codes = nearest(vectors.detach(), self.codebook.detach())
            e = self.lookup(codes)
            loss = self.commitment * (h - e.detach()).pow(2).flatten(1).mean(1)
            if self.learns == "gradient":
                loss = loss + (h.detach() - e).pow(2).flatten(1).mean(1)
            if self.training and torch.is_grad_enabled():
                self._count(vectors.detach().flatten(0, -2), codes.flatten())
            return Encoded(straight_through(h, e), loss, codes)

    def lookup(self, codes: Tensor) -> Tensor:
        """Codebook entries by number: (B, h, w) int64 -> (B, D, h, w).

        Raises:
            UserError: a code outside 0 .. K - 1.
        """
        check_codes(codes, len(self.codebook))
        return functional.embedding(codes, self.codebook).movedim(-1, 1)

    @torch.no_grad()
    def _count(self, vectors: Tensor, codes: Tensor) -> None:
        """Update the running statistics with (N, D) vectors and their (N,) codes, and the entries that follow them."""
        choice = functional.one_hot(codes, len(self.codebook)).to(vectors)  # (N, K)
        self.chosen.lerp_(choice.mean(0), 1 - FORGET)
        self.sums.lerp_(choice.T @ vectors / len(vectors), 1 - FORGET)
        if self.learns == "ema":
            alive = self.chosen > 0
            self.codebook[alive] = self.sums[alive] / self.chosen[alive, None]

        # Restart what nobody chooses: a random vector of this batch, and an even share of trust to begin with
        dead = self.chosen < self.restart / len(self.codebook)
        picked = vectors[torch.randint(len(vectors), (int(dead.sum()),), device=vectors.device)]
        share = 1 / len(self.codebook)
        self.codebook[dead], self.chosen[dead], self.sums[dead] = picked, share, picked * share


def perplexity(codes: Tensor, entries: int) -> float:
    """How many entries a code is worth: exp of the entropy of their frequencies, from 1 to K.

    Args:
        codes: any shape, int64, 0 .. entries - 1.
        entries: K.
    """
    share = torch.bincount(check_codes(codes, entries).flatten(), minlength=entries).double() / codes.numel()
    return torch.special.entr(share).sum().exp().item()


def check_codes(codes: Tensor, entries: int) -> Tensor:
    """The codes themselves, if each is one of 0 .. entries - 1.

    Raises:
        UserError: it is not, or they are no integers.
    """
    if codes.dtype != torch.int64:
        raise UserError(f"codes are whole numbers (int64), not {str(codes.dtype).removeprefix('torch.')}")
    low, high = (codes.min().item(), codes.max().item()) if codes.numel() else (0, 0)
    if low < 0 or high >= entries:
        raise UserError(f"codes must lie in 0 .. {entries - 1}, not {low} .. {high}")
    return codes


class GreyLevels(nn.Module):
    """A bottleneck that needs no network around it: each pixel of a grey picture is a code, one of a few levels.

    What a transformer has to work on when there is no first stage.

    Args:
        levels: how many, at least 2.

    Raises:
        UserError: fewer levels.
    """

    width = 1

    def __init__(self, levels: int = 16):
        super().__init__()
        if levels < 2:
            raise UserError(f"grey has at least 2 levels, black and white, not {levels}")
        self.levels = levels

    def forward(self, x: Tensor) -> Encoded:  # (B, 1, H, W) in [-1, 1] -> codes (B, H, W)
        codes = ((x[:, 0] + 1) / 2 * (self.levels - 1)).round().long().clamp(0, self.levels - 1)
        return Encoded(self.lookup(codes), x.new_zeros(len(x)), codes)

    def lookup(self, codes: Tensor) -> Tensor:  # (B, H, W) -> (B, 1, H, W) in [-1, 1]
        return check_codes(codes, self.levels)[:, None].float() / (self.levels - 1) * 2 - 1
