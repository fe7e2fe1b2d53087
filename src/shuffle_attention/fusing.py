"""When the end of a residual block may be computed as one op instead of by its modules one after the other."""

import torch
from torch import Tensor, nn

from .layers import ShuffleAttention
from .ops import has_kernels

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def can_fuse(
    u: Tensor, shortcut: Tensor, norm: nn.Module, attention: nn.Module, act: nn.Module, drop_path: nn.Module | None
) -> bool:
    """Returns whether ``act(drop_path(attention(norm(u))) + shortcut)`` is what one op computes, to rounding.

    It is not where somebody looks or reaches between the modules (hooks, a subclass, another norm or
    activation), where the graph is to show them (fx, tracing, export), where branches are dropped,
    where types differ, and where there is no kernel for the device and type.

    Args:
        u: What goes into ``norm``.
        shortcut: What is added.
        norm: The last norm of the branch.
        attention: The attention after it.
        act: The activation after the addition.
        drop_path: Stochastic depth of the branch, or None.
    """
    if isinstance(u, torch.fx.Proxy) or torch.jit.is_tracing() or torch.compiler.is_exporting():
        return False
    return (
        type(norm) is nn.BatchNorm2d
        and type(attention) is ShuffleAttention
        and type(act) is nn.ReLU
        and (drop_path is None or not drop_path.training)
        and has_kernels(u)
        and u.dtype == shortcut.dtype
        and u.shape == shortcut.shape
        and not any(getattr(module, hooks) for module in (norm, attention, act) for hooks in _HOOKS)
        and not _global_hooks()
    )


def _global_hooks() -> bool:
    return bool(torch.nn.modules.module._has_any_global_hook())
