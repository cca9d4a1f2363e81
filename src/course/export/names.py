"""From our names of a model's tensors to those of another library."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torch import Tensor


def rename(tensors: Mapping[str, Tensor], names: Sequence[tuple[str, str]]) -> dict[str, Tensor]:
    """Tensors under other names. names: patterns and what replaces them; all of them are tried, in this order."""
    found = {}
    for key, value in tensors.items():
        for pattern, name in names:
            key = re.sub(pattern, name, key)
        found[key] = value
    return found
