"""Low-rank changes of a trained network's matrices (Hu et al. 2022, *LoRA*)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from course import UserError
from course.models.layers import zeroed

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")  # the matrices of attention, as Diffusers calls them


class LoRA(nn.Module):
    """What is added to the answer of one linear layer: x (..., before) -> alpha / r * B A x (..., after).

    A is random and B zero, so that at first nothing changes (Hu et al. 2022, section 4.1).  Both have the names that
    the library peft gives them.

    Args:
        before, after: channels of the layer's input and output.
        rank: r, from 1 to the smaller of the two.
        alpha: above 0; none for r, so that the factor is 1.

    Raises:
        UserError: another rank or alpha.
    """

    def __init__(self, before: int, after: int, rank: int = 4, alpha: float | None = None):
        super().__init__()
        if not 1 <= rank <= min(before, after):
            raise UserError(f"the rank of a change of {after} x {before} must be 1 to {min(before, after)}, not {rank}")
        if alpha is not None and not 0 < alpha < math.inf:
            raise UserError(f"alpha must be above 0, not {alpha}")
        self.factor = 1.0 if alpha is None else alpha / rank
        self.lora_A = nn.Linear(before, rank, bias=False)
        self.lora_B = zeroed(nn.Linear(rank, after, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * self.lora_B(self.lora_A(x))

    def matrix(self) -> Tensor:
        """The change of the layer's weight, (after, before)."""
        return self.factor * self.lora_B.weight @ self.lora_A.weight


class Adapter(nn.Module):
    """Low-rank changes for many linear layers of one network, kept apart from it.

    The parameters carry the layers' names: a change of ``a.to_q`` has ``a.to_q.lora_A.weight`` and
    ``a.to_q.lora_B.weight``.  Building an adapter changes nothing; :meth:`attach` does.

    Args:
        network: whose linear layers are to be changed.
        rank, alpha: see :class:`LoRA`.
        targets: names, or ends of names, of the layers.

    Attributes:
        scale: what the changes are multiplied by while attached; 1 as trained, 0 for none of it.

    Raises:
        UserError: no linear layer of these names.
    """

    def __init__(
        self, network: nn.Module, rank: int = 4, alpha: float | None = None, targets: Sequence[str] = ATTENTION
    ):
        super().__init__()
        self.scale, self._handles = 1.0, []
        self.names = tuple(
            name
            for name, layer in network.named_modules()
            if isinstance(layer, nn.Linear) and any(f".{name}".endswith(f".{target}") for target in targets)
        )
        if not self.names:
            raise UserError(f"no linear layer of the network is called {' or '.join(targets)}")
        for name in self.names:
            layer, place = network.get_submodule(name), self
            *path, last = name.split(".")
            for part in path:  # modules inside modules, so that the parameters' names are the network's
                if not hasattr(place, part):
                    place.add_module(part, nn.Module())
                place = getattr(place, part)
            place.add_module(last, LoRA(layer.in_features, layer.out_features, rank, alpha))

    def changes(self) -> dict[str, LoRA]:
        """The change of each layer, by the layer's name."""
        return {name: self.get_submodule(name) for name in self.names}

    def attach(self, network: nn.Module) -> None:
        """From now on the network answers with the changes, times ``scale``; several adapters add up.

        Raises:
            UserError: this adapter is attached already, or the network is another one.
        """
        if self._handles:
            raise UserError("this adapter is attached already: detach it first")
        self._demand_fit(network)
        for name, change in self.changes().items():

            def add(layer: nn.Module, given: tuple[Tensor], answer: Tensor, change: LoRA = change) -> Tensor:
                return answer + self.scale * change(given[0])

            self._handles.append(network.get_submodule(name).register_forward_hook(add))

    def detach(self) -> None:
        """The network answers as before."""
        while self._handles:
            self._handles.pop().remove()

    @torch.no_grad()
    def merge(self, network: nn.Module, scale: float = 1.0) -> None:
        """Add the changes to the network's matrices, for good: the same answers, and no further cost.

        Raises:
            UserError: the network is another one.
        """
        self._demand_fit(network)
        for name, change in self.changes().items():
            weight = network.get_submodule(name).weight
            weight += scale * change.matrix().to(weight)

    def _demand_fit(self, network: nn.Module) -> None:
        layers = dict(network.named_modules())
        for name, change in self.changes().items():
            wanted = (change.lora_B.out_features, change.lora_A.in_features)
            layer = layers.get(name)
            found = tuple(layer.weight.shape) if isinstance(layer, nn.Linear) else None
            if found != wanted:
                what = f"is {found[0]} x {found[1]}" if found else "does not exist"
                raise UserError(
                    f"the adapter was made for another network: it changes {name} of {wanted[0]} x {wanted[1]}, "
                    f"which {what} here"
                )
