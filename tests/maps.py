"""Maps in every layout that a kernel may meet, and what a case of a table of maps is."""

from dataclasses import dataclass
from itertools import cycle
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._ops import OpOverload


def contiguous(x: Tensor) -> Tensor:
    return x


def channels_last(x: Tensor) -> Tensor:
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def transposed(x: Tensor) -> Tensor:
    """Dense, in an order of dimensions that no kernel has."""
    return x.transpose(-1, -2).contiguous().transpose(-1, -2)


def every_other(x: Tensor) -> Tensor:
    """With gaps between its elements."""
    return torch.stack([x, x], dim=-1)[..., 0]


# Tracing takes nine tenths of the time of `opcheck`, and does not depend on the type of the values.
UNTRACED = ("test_schema", "test_autograd_registration", "test_faketensor")


def opcheck(op: OpOverload, arguments: tuple[Any, ...], *, traced: bool) -> None:
    """Check the registration of an op, with tracing of forward and backward if ``traced``."""
    torch.library.opcheck(op, arguments, test_utils=(*UNTRACED, *(["test_aot_dispatch_dynamic"] if traced else [])))


def in_turn(cases: list[Any]) -> pytest.MarkDecorator:
    """Parametrise a test by cases, each with one of the types: it checks shapes and types, which are apart."""
    types = torch.float32, torch.bfloat16, torch.float64, torch.float16
    return pytest.mark.parametrize(("case", "dtype"), list(zip(cases, cycle(types), strict=False)), ids=str)


@dataclass(frozen=True)
class MapCase:
    shape: tuple[int, ...]
    groups: int
    layout: object = contiguous
    shuffle: bool = True
    gain: float = 1.0

    def __str__(self) -> str:
        shape = "x".join(map(str, self.shape))
        options = "-straight" * (not self.shuffle) + "-gain" * (self.gain != 1)
        return f"{shape}-{self.groups}-{self.layout.__name__}{options}"
