"""ReLU(BatchNorm(u)) and its only consumer as one step of autograd, which keeps ``u`` and not the map between them.

A plain model keeps both: ``u`` for BatchNorm, and relu(norm(u)) for the convolution after it. Here the backward pass
computes the second from the first once more, by the same op on the same numbers, so that the gradients are the same to
the bit. Max pooling needs the positions of its maxima and the shape of its input alone.

Autograd itself keeps the tensors: changing one in place before the backward pass is an error, and hooks of saved
tensors, gradient checkpointing among them, see them.
"""

import functools
import logging
from itertools import compress
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from ..kernels import has_kernels
from .fused_block import can_fuse, is_hooked, update_running_statistics

logger = logging.getLogger(__name__)
_tail = torch.ops.shuffle_attention
_NO_ATTENTION = (None,) * 6


def can_rebuild(u: Tensor, norm: nn.Module, act: nn.Module | None, consumer: nn.Module) -> bool:
    """Return whether the input of ``consumer``, ``act(norm(u))``, can be rebuilt in the backward pass.

    It can if norm and ReLU run as one op, and nothing observes or replaces the consumer, a convolution or max pooling.
    Without gradients nothing is kept. Compilers and the transforms of ``torch.func`` need to see the ops.
    """
    if not torch.is_grad_enabled() or torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    if not has_kernels(u, whole=False):
        _warn_of_missing_kernels(u.device.type, u.dtype)
        return False
    if act is None or forward_ad._current_level >= 0 or not can_fuse(u, None, norm, None, act, None):
        return False
    if u.numel() <= u.shape[1] or is_hooked(consumer) or "forward" in vars(consumer):
        return False
    if type(consumer) is nn.Conv2d:
        return consumer.padding_mode == "zeros" and not isinstance(consumer.padding, str)
    return type(consumer) is nn.MaxPool2d and not consumer.return_indices


@functools.cache
def _warn_of_missing_kernels(device: str, dtype: torch.dtype) -> None:
    """Warn once for each device and type."""
    logger.warning(
        "memory='rebuild' keeps as much as memory='keep': no kernel computes norm and ReLU as one op for %s on %s",
        str(dtype).removeprefix("torch."),
        device,
    )


def rebuilt(u: Tensor, norm: nn.BatchNorm2d, consumer: nn.Conv2d | nn.MaxPool2d) -> Tensor:
    """Return ``consumer(relu(norm(u)))``, and update the running statistics as the norm does in training.

    Args:
        u: Input of the norm, (B, C, H, W).
        norm: The norm; a ReLU follows it.
        consumer: The only module that uses the result.
    """
    scale = u.new_ones(norm.num_features) if norm.weight is None else norm.weight
    shift = u.new_zeros(norm.num_features) if norm.bias is None else norm.bias
    by_batch = norm.training or norm.running_mean is None or norm.running_var is None
    given = (None, None) if by_batch else (norm.running_mean, norm.running_var)
    parameters = map(_cast, (consumer.weight, consumer.bias)) if isinstance(consumer, nn.Conv2d) else ()
    out, moments = cast(Any, _Rebuilt.apply(consumer, norm.eps, u, scale, shift, *given, *parameters))
    if norm.training and norm.track_running_stats:
        update_running_statistics(norm, moments, u.numel() // norm.num_features)
    return out


class _Rebuilt(torch.autograd.Function):
    @staticmethod
    def forward(ctx, consumer, eps, *tensors):  # pyright: ignore[reportIncompatibleMethodOverride]
        y, _, moments = _tail.block_tail(tensors[0], None, *tensors[1:5], *_NO_ATTENTION, eps, 0.0, False, True)
        out, *indices = _consume(consumer, y, *tensors[5:])
        ctx.consumer, ctx.eps = consumer, eps
        ctx.save_for_backward(moments, *tensors, *indices)
        ctx.mark_non_differentiable(moments)
        return out, moments

    @staticmethod
    def backward(ctx, grad, _):  # pyright: ignore[reportIncompatibleMethodOverride]
        consumer, needed, eps = ctx.consumer, ctx.needs_input_grad[2:], (ctx.eps, 0.0, False)
        moments, *tensors = ctx.saved_tensors
        tensors, indices = tensors[: len(needed)], tensors[len(needed) :]
        (u, scale, shift, *given), parameters = tensors[:5], tensors[5:]
        if torch.is_grad_enabled():  # for gradients of gradients: autograd goes through what is computed once more
            y, *_ = _tail.block_tail(u, None, scale, shift, *given, *_NO_ATTENTION, *eps, True)
            out, *_ = _consume(consumer, y.to(grad.dtype), *parameters)
            gradients = iter(torch.autograd.grad(out, [*compress(tensors, needed)], grad, create_graph=True))
            return None, None, *(next(gradients) if need else None for need in needed)
        y, through = u, any(needed[:3])
        if any(needed[5:]):
            y, *_ = _tail.block_tail(u, None, scale, shift, *moments, *_NO_ATTENTION, *eps, True)
        dy, *of_parameters = _consumer_backward(consumer, grad, y, parameters, indices, [through, *needed[5:]])
        of_norm = (None,) * 3
        if through:
            du, _, *of_norm = _tail.block_tail_backward(
                *(dy.to(u.dtype), u, None, moments, scale, shift, *given, *_NO_ATTENTION, *eps, False, 1.0, True)
            )
            of_norm = du, *of_norm[:2]
        return None, None, *of_norm, None, None, *of_parameters


def _consume(consumer: nn.Module, y: Tensor, *parameters: Tensor | None) -> tuple[Tensor, ...]:
    """Return the output, and the positions of the maxima if the consumer is a pooling."""
    if isinstance(consumer, nn.Conv2d):
        settings = consumer.stride, consumer.padding, consumer.dilation, consumer.groups
        return (nn.functional.conv2d(y, *parameters, *settings),)  # type: ignore[arg-type]
    return nn.functional.max_pool2d_with_indices(y, *_pooling(consumer))


def _consumer_backward(
    consumer: nn.Module, grad: Tensor, y: Tensor, parameters: Any, indices: Any, mask: list[bool]
) -> tuple[Tensor, ...]:
    """Return the gradients of the input and the parameters where ``mask`` is true; pooling needs no values of ``y``."""
    if isinstance(consumer, nn.Conv2d):
        weight, bias = parameters
        shape = None if bias is None else list(bias.shape)
        settings = consumer.stride, consumer.padding, consumer.dilation, False, (0, 0), consumer.groups
        return torch.ops.aten.convolution_backward(grad, y.to(weight.dtype), weight, shape, *settings, mask)
    return (torch.ops.aten.max_pool2d_with_indices_backward(grad, y, *_pooling(consumer), *indices),)


def _pooling(pool: Any) -> tuple[Any, ...]:
    return pool.kernel_size, pool.stride, pool.padding, pool.dilation, pool.ceil_mode


def _cast(tensor: Tensor | None) -> Tensor | None:
    """Return a parameter of a convolution in the type that autocast gives it."""
    if tensor is None or tensor.dtype == torch.float64 or not torch.is_autocast_enabled(tensor.device.type):
        return tensor
    return tensor.to(torch.get_autocast_dtype(tensor.device.type))
