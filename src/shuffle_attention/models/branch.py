"""The modules of a residual branch one after the other, with BatchNorm and ReLU as one op where that is possible."""

from collections.abc import Iterable, Iterator
from typing import Any, cast, get_args

from torch import Tensor, nn

from ..errors import InputError
from . import rebuild
from .fused_block import Memory, can_fuse, is_hooked, norm_act, parameters_of, update_running_statistics

__all__ = ["Memory", "run_branch", "set_memory"]

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
        memory: What is rebuilt in the backward pass instead of kept (:func:`set_memory`).
    """
    steps, before = [*_steps(modules)][::-1], None
    while steps:
        module = steps.pop()
        if type(module) is nn.BatchNorm2d:
            act = steps.pop() if steps and type(steps[-1]) is nn.ReLU else None
            if memory != "keep" and steps and _can_rebuild(x, module, act, steps[-1]):
                norm, module = module, cast(Any, steps.pop())
                x = _norm_relu_consume(x, norm, module)
            else:
                x = norm_act(x, module, act, conv=before, memory=memory)
        elif memory == "rebuild-all" and _is_plain_conv(module) and rebuild.is_possible(x):
            x = rebuild.convolve(x, cast(Any, module))
        else:
            x = module(x)
        before = module
    return x


def _can_rebuild(u: Tensor, norm: nn.Module, act: nn.Module | None, consumer: nn.Module) -> bool:
    """Return whether the input of ``consumer``, ``act(norm(u))``, can be rebuilt in the backward pass.

    It can if norm and ReLU run as one op, and nothing observes or replaces the consumer, a convolution or max pooling.
    """
    if not rebuild.is_possible(u) or act is None or not can_fuse(u, None, norm, None, act, None):
        return False
    if u.numel() <= u.shape[1] or is_hooked(consumer) or "forward" in vars(consumer):
        return False
    return _is_plain_conv(consumer) or (type(consumer) is nn.MaxPool2d and not consumer.return_indices)


def _is_plain_conv(module: nn.Module) -> bool:
    if type(module) is not nn.Conv2d or is_hooked(module) or "forward" in vars(module):
        return False
    return module.padding_mode == "zeros" and not isinstance(module.padding, str)


def _norm_relu_consume(u: Tensor, norm: nn.BatchNorm2d, consumer: nn.Conv2d | nn.MaxPool2d) -> Tensor:
    out, moments = rebuild.norm_relu_consume(u, parameters_of(norm, u), norm.eps, consumer)
    if norm.training and norm.track_running_stats:
        update_running_statistics(norm, moments, u.numel() // norm.num_features)
    return out


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

    ``"rebuild"`` recomputes relu(norm(u)) from ``u`` instead of keeping both; ``"rebuild-all"`` recomputes the outputs
    of blocks as well. The gradients are the same to the bit.

    Args:
        model: Model with the blocks of an SA-ResNet, or with blocks that attention (or ``"none"``) is attached to.
        memory: ``"keep"``, ``"rebuild"`` or ``"rebuild-all"``.

    Raises:
        InputError: If there is no such mode, or no such block in the model.
    """
    if memory not in get_args(Memory):
        raise InputError(f"memory must be 'keep', 'rebuild' or 'rebuild-all', got {memory!r}")
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
