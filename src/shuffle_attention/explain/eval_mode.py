"""Looking into a network without leaving a trace in it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """The network in evaluation mode with gradients, and afterwards every module in the mode in which it was.

    The modes are set module by module: a network may have trained with some of them, such as its norms, in
    evaluation mode, and ``train()`` may do more than to set a mode. Parameters are not touched, as long as gradients
    are taken with ``torch.autograd.grad``.
    """
    modes = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in modes:
            module.training = False
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
