"""The modules of a residual branch one after the other, with BatchNorm and ReLU as one op where that is possible."""

from collections.abc import Iterable, Iterator
from typing import Any, Literal, cast, get_args

from torch import Tensor, nn

from ..errors import InputError
from .fused_block import is_hooked, norm_act
from .rebuild import can_rebuild, rebuilt

__all__ = ["Memory", "run_branch", "set_memory"]

Memory = Literal["keep", "rebuild"]

# Classes whose forward pass calls their children one after the other.
_SEQUENCES = {
    "torch.nn.modules.container.Sequential",
    "transformers.models.resnet.modeling_resnet.ResNetConvLayer",
    "transformers.models.resnet.modeling_resnet.ResNetShortCut",
}


def run_branch(x: Tensor, modules: Iterable[nn.Module], memory: Memory = "keep") -> Tensor:
    """Return the output of modules called one after the other.

    Args:
        x: Input of the first module.
        modules: Modules. Sequences are opened and identities left out, unless something observes them.
        memory: Whether relu(norm(u)) is kept for the backward pass beside ``u``, or rebuilt from it.
    """
    steps, before = [*_steps(modules)][::-1], None
    while steps:
        module = steps.pop()
        if type(module) is nn.BatchNorm2d:
            act = steps.pop() if steps and type(steps[-1]) is nn.ReLU else None
            if memory == "rebuild" and steps and can_rebuild(x, module, act, steps[-1]):
                norm, module = module, cast(Any, steps.pop())
                x = rebuilt(x, norm, module)
            else:
                x = norm_act(x, module, act, conv=before)
        else:
            x = module(x)
        before = module
    return x


def _steps(modules: Iterable[nn.Module]) -> Iterator[nn.Module]:
    for module in modules:
        cls = type(module)
        if is_hooked(module) or "forward" in vars(module):
            yield module
        elif f"{cls.__module__}.{cls.__qualname__}" in _SEQUENCES and "_root" not in vars(cls):
            yield from _steps(module.children())
        elif cls is not nn.Identity:
            yield module


def set_memory(model: nn.Module, memory: Memory) -> None:
    """Set what the residual blocks of a model keep for the backward pass, in place.

    ``"rebuild"`` recomputes relu(norm(u)) from ``u`` instead of keeping both. The gradients are the same to the bit.

    Args:
        model: Model with the blocks of an SA-ResNet, or with blocks that attention (or ``"none"``) is attached to.
        memory: ``"keep"`` or ``"rebuild"``.

    Raises:
        InputError: If there is no such mode, or no such block in the model.
    """
    if memory not in get_args(Memory):
        raise InputError(f"memory must be 'keep' or 'rebuild', got {memory!r}")
    blocks: list[Any] = [
        module for module in model.modules() if getattr(type(module), "memory", None) in get_args(Memory)
    ]
    if not blocks and memory != "keep":
        raise InputError(
            f"memory={memory!r} needs an SA-ResNet, or a ResNet of timm, torchvision or Hugging Face that attention is "
            f"attached to (attach 'none' attaches nothing else); {type(model).__name__} has no such block"
        )
    for block in blocks:
        block.memory = memory
