"""BatchNorm and what follows it in a residual block as one op instead of several modules, and when that is possible."""

from typing import Any, Literal
from unittest import mock

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules.batchnorm import _BatchNorm

from ..attention.shuffle import ShuffleAttention
from ..errors import InputError
from ..kernels import has_kernels, reference
from . import rebuild

Memory = Literal["keep", "rebuild", "rebuild-all"]

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def can_fuse(
    u: Tensor,
    shortcut: Tensor | None,
    norm: nn.Module | None,
    attention: nn.Module | None,
    act: nn.Module | None,
    drop: nn.Module | None,
) -> bool:
    """Return whether one op can compute ``act(drop(attention(norm(u))) + shortcut)``, to rounding.

    It cannot if anything observes or replaces the modules (hooks, a subclass, another norm or activation), if the
    graph must show them (fx, tracing, export), if values or branches are dropped, if types differ, or if there is no
    kernel for the device and type.

    Args:
        u: Input of ``norm``.
        shortcut: Summand, or None.
        norm: The last norm of the branch; None or ``nn.Identity`` for nothing.
        attention: The attention after it; None or ``nn.Identity`` for nothing.
        act: The activation at the end; None or ``nn.Identity`` for nothing.
        drop: What drops values or the branch in training (DropBlock or stochastic depth), or None.
    """
    return not obstacle(u, shortcut, norm, attention, act, drop)


def obstacle(
    u: Tensor,
    shortcut: Tensor | None,
    norm: nn.Module | None,
    attention: nn.Module | None,
    act: nn.Module | None,
    drop: nn.Module | None,
) -> str:
    """Return why :func:`can_fuse` does not hold, empty if it does."""
    if isinstance(u, torch.fx.Proxy) or torch.jit.is_tracing() or reference.is_exporting():
        return "the graph must show its modules"
    if not fusable(norm, attention, act):
        kinds = ", ".join(type(module).__name__ for module in (norm, attention, act) if not _is_absent(module))
        return f"one op computes BatchNorm2d, ShuffleAttention and ReLU, and not {kinds}"
    if drop is not None and drop.training:
        return f"{type(drop).__name__} drops values in training"
    if not has_kernels(u, whole=not (_is_absent(norm) or _is_absent(attention))):
        return f"there is no kernel for {u.dtype} on {u.device.type}"
    if shortcut is not None and (u.dtype != shortcut.dtype or u.shape != shortcut.shape):
        return "the branch and its shortcut have different types or shapes"
    if any(is_hooked(module) for module in (norm, attention, act, drop) if module is not None):
        return "a hook observes its modules"
    return ""


def obstacles(model: nn.Module, x: Tensor) -> tuple[int, dict[str, str]]:
    """Run a model once, and return how many ends of residual blocks ran as one op, and why others did not.

    Args:
        model: Model, in the mode to be examined.
        x: Its input, on its device.

    Returns:
        The number of fused ends, and the reason of each other one by the name of its norm.
    """
    names = {id(module): name for name, module in model.named_modules()}
    fused, reasons = 0, {}

    def observe(u: Tensor, shortcut: Tensor | None, norm: nn.Module | None, *others: nn.Module | None) -> bool:
        nonlocal fused
        reason = obstacle(u, shortcut, norm, *others)
        if shortcut is not None and reason:
            reasons[names.get(id(norm), "a block without a norm")] = reason
        fused += shortcut is not None and not reason
        return not reason

    with mock.patch(f"{__name__}.can_fuse", observe), torch.no_grad():
        model(x)
    return fused, reasons


def fusable(norm: nn.Module | None, attention: nn.Module | None, act: nn.Module | None) -> bool:
    """Return whether these modules are those that the op computes, on devices that have a kernel for it."""
    modules = ((norm, nn.BatchNorm2d), (attention, ShuffleAttention), (act, nn.ReLU))
    return all(type(module) is known or _is_absent(module) for module, known in modules)


def _is_absent(module: nn.Module | None) -> bool:
    return module is None or type(module) is nn.Identity


def is_hooked(module: nn.Module) -> bool:
    """Return whether calling a module does more than run its forward pass, because of hooks."""
    return any(getattr(module, hooks) for hooks in _HOOKS) or bool(torch.nn.modules.module._has_any_global_hook())


def norm_act(
    u: Tensor,
    norm: nn.Module,
    act: nn.Module | None,
    drop: nn.Module | None = None,
    *,
    conv: nn.Module | None = None,
    memory: Memory = "keep",
) -> Tensor:
    """Return ``act(drop(norm(u)))``, as one op where :func:`can_fuse` allows it.

    Args:
        u: Input of ``norm``.
        norm: The norm.
        act: The activation; None or ``nn.Identity`` for nothing.
        drop: DropBlock, or None.
        conv: The module that has just computed ``u``, if nothing else uses ``u``. The result may then be written over
            ``u`` where no gradient is recorded.
        memory: With ``"rebuild-all"`` the result is rebuilt in the backward pass and not kept.
    """
    if can_fuse(u, None, norm, None, act, drop):
        return _fused(u, None, norm, None, act, conv, memory)
    y = norm(u)
    if drop is not None:
        y = drop(y)
    return y if act is None else act(y)


def block_end(
    u: Tensor,
    shortcut: Tensor,
    norm: nn.Module | None,
    attention: nn.Module | None,
    act: nn.Module | None,
    drop_path: nn.Module | None,
    *,
    conv: nn.Module | None = None,
    memory: Memory = "keep",
) -> Tensor:
    """Return ``act(drop_path(attention(norm(u))) + shortcut)``, as one op where :func:`can_fuse` allows it.

    Args:
        u: Input of ``norm``.
        shortcut: Summand.
        norm: The last norm of the branch; None or ``nn.Identity`` for nothing.
        attention: The attention after it; None or ``nn.Identity`` for nothing.
        act: The activation after the addition; None or ``nn.Identity`` for nothing.
        drop_path: Stochastic depth of the branch, or None.
        conv: The module that has just computed ``u``, if nothing else uses ``u``. The result may then be written over
            ``u`` where no gradient is recorded.
        memory: With ``"rebuild-all"`` the result is rebuilt in the backward pass and not kept.
    """
    if can_fuse(u, shortcut, norm, attention, act, drop_path):
        return _fused(u, shortcut, norm, attention, act, conv, memory)
    y = u
    for module in (norm, attention, drop_path):
        if module is not None:
            y = module(y)
    y = y + shortcut  # not in place: a backward hook on the attention forbids it
    return y if act is None else act(y)


def _fused(
    u: Tensor, shortcut: Tensor | None, norm: Any, attention: Any, act: Any, conv: nn.Module | None, memory: Memory
) -> Tensor:
    plain = type(conv) is nn.Conv2d or getattr(type(conv), "writes_new_map", False)
    owned = conv is not None and plain and not is_hooked(conv)
    return block_tail(u, shortcut, norm, attention, relu=not _is_absent(act), over=owned, memory=memory)


def block_tail(
    u: Tensor,
    shortcut: Tensor | None,
    norm: _BatchNorm | nn.Identity | None,
    attention: ShuffleAttention | nn.Identity | None,
    *,
    relu: bool = True,
    over: bool = False,
    memory: Memory = "keep",
) -> Tensor:
    """Return ``relu(attention(norm(u)) + shortcut)``, to rounding what the modules compute one by one.

    The statistics are those of the batch if ``norm`` is in training or has no running statistics; training updates
    the running statistics and the count of batches. Hooks of the two modules are not called. Statistics and gates are
    float32 (float64 for float64), whatever the type of the map, and intermediate values are not rounded to it.

    Args:
        u: Input of ``norm``, (B, C, *spatial) with 1 to 3 spatial dimensions.
        shortcut: Summand of the shape and type of ``u``; None for nothing.
        norm: The BatchNorm before the attention; None or ``nn.Identity`` for nothing.
        attention: The attention, of which only the parameters are read; None or ``nn.Identity`` for nothing.
        relu: Whether to apply ReLU at the end.
        over: Whether the result may be written over ``u``, which nothing else uses. It is where that saves memory and
            changes no value: if no gradient is recorded, the statistics of ``norm`` are given, and the attention does
            not shuffle.
        memory: With ``"rebuild-all"`` the result is rebuilt in the backward pass and not kept. ReLU of a norm alone
            keeps nothing anyway.

    Returns:
        Map of the shape, type and memory format of ``u``.

    Raises:
        TypeError: If ``u`` is not of a floating-point type.
        InputError: If shapes or types do not fit together, or training has one value per channel (a ``ValueError``).

    Source: He et al., arXiv:1512.03385, section 3; Zhang & Yang, arXiv:2102.00240, section 4.
    """
    norm = None if isinstance(norm, nn.Identity) else norm
    attention = None if isinstance(attention, nn.Identity) else attention
    _check(u, shortcut, norm, attention)
    of_norm: tuple[Tensor | None, ...] = (None,) * 4
    six: tuple[Tensor | None, ...] = (None,) * 6
    by_batch, norm_eps, eps, shuffle, gain, values = False, 0.0, 0.0, False, 1.0, u.numel() // max(u.shape[1], 1)
    if norm is not None:
        of_norm, norm_eps = parameters_of(norm, u), norm.eps
        by_batch = of_norm[2] is None
        if by_batch and values == 1:
            raise InputError(f"batch statistics need more than 1 value per channel in training, got {tuple(u.shape)}")
    if attention is not None:
        six, eps = attention.op_parameters(), attention.gn.eps
        shuffle, gain = attention.shuffle, attention.gain_value
    if over and not (by_batch or shuffle or torch.is_grad_enabled() or _is_transformed()):
        torch.ops.shuffle_attention.block_tail_(u, shortcut, *of_norm, *six, norm_eps, eps, relu, gain)
        return u
    op: Any = torch.ops.shuffle_attention.block_tail
    if memory == "rebuild-all" and (shortcut is not None or not relu) and rebuild.is_possible(u):
        op = rebuild.block_tail
    out, _, moments = op(u, shortcut, *of_norm, *six, norm_eps, eps, shuffle, relu, gain)
    if norm is not None and norm.training and norm.track_running_stats:
        update_running_statistics(norm, moments, values)
    return out


def parameters_of(norm: _BatchNorm, u: Tensor) -> tuple[Tensor | None, ...]:
    """Return the weight, bias, mean and variance that the op takes; the last two are None for those of the batch."""
    mean, var = norm.running_mean, norm.running_var
    weight = u.new_ones(norm.num_features) if norm.weight is None else norm.weight
    bias = u.new_zeros(norm.num_features) if norm.bias is None else norm.bias
    by_batch = norm.training or mean is None or var is None
    return (weight, bias, None, None) if by_batch else (weight, bias, mean, var)


def _is_transformed() -> bool:
    """Return whether a compiler, which reuses memory by itself, or a transform needs an op without side effects."""
    if torch.compiler.is_compiling():
        return True
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def _check(u: Tensor, shortcut: Tensor | None, norm: _BatchNorm | None, attention: ShuffleAttention | None) -> None:
    if not u.is_floating_point():
        raise TypeError(f"u must be of a floating-point type, got {u.dtype}")
    if not 3 <= u.dim() <= 5:
        raise InputError(f"u must have shape (B, C, *spatial) with 1 to 3 spatial dimensions, got {tuple(u.shape)}")
    channels = [norm.num_features] if norm is not None else []
    channels += [attention.channels] if attention is not None else []
    if any(count != u.shape[1] for count in channels):
        raise InputError(
            f"u, norm and attention must have the same number of channels, got {tuple(u.shape)}, "
            f"{' and '.join(map(str, channels))}"
        )
    if shortcut is not None and (shortcut.shape != u.shape or shortcut.dtype != u.dtype):
        raise InputError(
            f"the shortcut must have the shape and type of u, got {tuple(shortcut.shape)} of {shortcut.dtype} "
            f"for {tuple(u.shape)} of {u.dtype}"
        )


@torch.no_grad()
def update_running_statistics(norm: _BatchNorm, moments: Tensor, values: int) -> None:
    """Update the running statistics as BatchNorm does in training; the running variance is the unbiased one."""
    running_mean, running_var, count = norm.running_mean, norm.running_var, norm.num_batches_tracked
    if running_mean is None or running_var is None:
        return
    if count is not None:
        count.add_(1)
    if values == 0:
        return
    mean, var = moments.to(running_mean.dtype).unbind()
    var = var * (values / (values - 1))
    if norm.momentum is None and count is not None:
        share = count.to(mean.dtype).reciprocal()  # keep it a tensor: .item() would synchronise with the GPU
        running_mean.lerp_(mean, share)
        running_var.lerp_(var, share)
    else:
        momentum = norm.momentum if norm.momentum is not None else 0.0
        running_mean.lerp_(mean, momentum)
        running_var.lerp_(var, momentum)
