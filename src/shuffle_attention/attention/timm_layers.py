"""Parts of the specs of timm's layers: how they are built, their gates, and their start."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn


def from_timm(name: str) -> Callable[..., nn.Module]:
    """Return the ``build`` of one of timm's attention layers, which imports timm when it is called."""

    def build(channels: int, **options: Any) -> nn.Module:
        from timm.layers import get_attn

        layer: Any = get_attn(name)
        return layer(channels, **options)

    return build


def product_of_gates(layer: Any, x: Tensor) -> Tensor:
    """Return the product of what the submodules ``gate`` of one of timm's layers return, as ``factors``."""
    product = torch.ones((), dtype=x.dtype, device=x.device)

    def multiply(_: nn.Module, inputs: Any, gate: Tensor) -> None:
        nonlocal product
        product = product * (gate if gate.dim() == x.dim() else gate.reshape(len(x), -1, *[1] * (x.dim() - 2)))

    with ExitStack() as hooks:
        for name, module in layer.named_modules():
            if name.rpartition(".")[2] == "gate":
                hooks.enter_context(module.register_forward_hook(multiply))
        layer.forward(x)
    return product


def start_of_model(module: nn.Module) -> None:
    """Keep the initialisation that a model gives to all its convolutions, as a ``published_start``."""
