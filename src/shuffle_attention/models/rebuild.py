"""Steps of autograd that keep the inputs of BatchNorm and rebuild the maps after them in the backward pass.

A plain model keeps ``u``, the input of BatchNorm, and what follows from it: relu(norm(u)) for the convolution after it,
and the output of the block for the next block and as ReLU's mask. Here the backward pass computes them from ``u`` once
more, by the same op on the same numbers, so that the gradients are the same to the bit.

- :func:`norm_relu_consume` is relu(norm(u)) and its only consumer, a convolution or max pooling. Max pooling needs the
  positions of its maxima and the shape of its input alone.
- :func:`block_tail` is the op of this name. Its output is rebuilt from ``u`` and the shortcut. The shortcut is the
  output of the block before, or a norm of another map, and if such a step computed it, it is rebuilt as well: the
  outputs of a stage are a chain that starts at its first block.
- :func:`convolve` is a convolution that reads such an output, and keeps the step that rebuilds it.

An output is rebuilt once, for its first reader in the backward pass, and is there until its own step has run.

Autograd itself keeps the tensors: changing one in place before the backward pass is an error, and hooks of saved
tensors see them.
"""

import functools
import logging
from itertools import compress
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from ..kernels import has_kernels

logger = logging.getLogger(__name__)
_tail = torch.ops.shuffle_attention
_NO_ATTENTION = (None,) * 6


def is_possible(u: Tensor) -> bool:
    """Return whether a map after ``u`` can be rebuilt.

    Without gradients nothing is kept. Tracers, compilers and the transforms of ``torch.func`` need to see the ops.
    """
    if isinstance(u, torch.fx.Proxy) or torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return False
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return False
    if not has_kernels(u, whole=False):
        _warn_of_missing_kernels(u.device.type, u.dtype)
        return False
    return True


def _is_checkpointed() -> bool:
    """Return whether gradient checkpointing is to compute this part of the model a second time, from its input."""
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)  # pyright: ignore[reportAttributeAccessIssue]
    return hooks is not None and hooks[0].__module__ == "torch.utils.checkpoint"


@functools.cache
def _warn_of_missing_kernels(device: str, dtype: torch.dtype) -> None:
    """Warn once for each device and type."""
    logger.warning(
        "memory='rebuild' keeps as much as memory='keep': no kernel computes norm and ReLU as one op for %s on %s",
        str(dtype).removeprefix("torch."),
        device,
    )


def norm_relu_consume(
    u: Tensor, of_norm: tuple[Tensor | None, ...], eps: float, consumer: nn.Conv2d | nn.MaxPool2d
) -> tuple[Tensor, Tensor]:
    """Return ``consumer(relu(norm(u)))``, and the moments of the norm.

    Args:
        u: Input of the norm, (B, C, H, W).
        of_norm: Weight, bias, running mean and variance of the norm; the last two are None for those of the batch.
        eps: Added to the variance.
        consumer: The only module that uses the result.
    """
    parameters = map(_cast, (consumer.weight, consumer.bias)) if isinstance(consumer, nn.Conv2d) else ()
    return cast(Any, _NormReluConsume.apply(consumer, eps, u, *of_norm, *parameters))


class _NormReluConsume(torch.autograd.Function):
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
            return None, None, *_gradients(out, grad, tensors, needed)
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


def block_tail(u: Tensor, shortcut: Tensor | None, *inputs: Any) -> tuple[Tensor, None, Tensor]:
    """Return what the op ``block_tail`` returns, without the statistics of the planes.

    Under gradient checkpointing it is the op itself: what a checkpoint computes again is rebuilt already.
    """
    if _is_checkpointed():
        out, _, moments = _tail.block_tail(u, shortcut, *inputs)
    else:
        out, moments = cast(Any, _BlockTail.apply(inputs[10:], u, shortcut, *inputs[:10]))
    return out, None, moments


class _BlockTail(torch.autograd.Function):
    @staticmethod
    def forward(ctx, settings, u, shortcut, *parameters):  # pyright: ignore[reportIncompatibleMethodOverride]
        out, statistics, moments = _tail.block_tail(u, shortcut, *parameters, *settings)
        ctx.settings, ctx.source, ctx.out, ctx.adds = settings, _source(shortcut), None, shortcut is not None
        ctx.save_for_backward(u, None if ctx.source else shortcut, statistics, moments, *parameters)
        ctx.mark_non_differentiable(moments)
        return out, moments

    @staticmethod
    def backward(ctx, grad, _):  # pyright: ignore[reportIncompatibleMethodOverride]
        u, shortcut, statistics, moments, *parameters = ctx.saved_tensors
        norm_eps, eps, shuffle, relu, gain = ctx.settings
        if torch.is_grad_enabled():  # as above; the shortcut decides what ReLU lets through, and no more
            if ctx.source:
                shortcut = _rebuilt(ctx.source)
            shortcut = shortcut.detach().requires_grad_() if ctx.adds else None
            out, *_ = _tail.block_tail(u, shortcut, *parameters, *ctx.settings)
            needed = [ctx.needs_input_grad[1], ctx.adds, *ctx.needs_input_grad[3:]]
            return None, *_gradients(out, grad, [u, shortcut, *parameters], needed)
        out, ctx.out = _rebuilt(ctx) if relu else None, None
        kept = statistics if parameters[4] is not None else moments
        du, dshortcut, *rest = _tail.block_tail_backward(
            *(grad, u, out, kept, *parameters, norm_eps, eps, shuffle, ctx.adds, gain)
        )
        dshortcut = (dshortcut if relu else grad) if ctx.adds else None
        rest[2:2] = None, None  # the running statistics have no gradient
        return None, du, dshortcut, *(None if p is None else d for p, d in zip(parameters, rest, strict=True))


def _source(x: Tensor | None) -> Any:
    """Return the step that has computed ``x`` and can rebuild it, or None."""
    node = None if x is None else x.grad_fn
    return node if isinstance(node, cast(Any, _BlockTail)._backward_cls) else None


def _rebuilt(step: Any) -> Tensor:
    """Return the output of a step: for gradients of gradients, connected to what it was computed from."""
    connected, steps = torch.is_grad_enabled(), [step]
    while steps[-1].source and (connected or steps[-1].out is None):
        steps.append(steps[-1].source)
    y = None if connected else steps[-1].out
    for step in reversed(steps if y is None else steps[:-1]):
        u, shortcut, _, moments, weight, bias, *parameters = step.saved_tensors
        if not connected and weight is not None:
            parameters[:2] = moments
        y, *_ = _tail.block_tail(u, y if step.source else shortcut, weight, bias, *parameters, *step.settings)
        if not connected and step.settings[3]:  # the output of a block, which its own step needs too
            step.out = y
    return cast(Tensor, y)


def convolve(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """Return ``conv(x)``; where a step can rebuild ``x``, it is not kept."""
    source = None if _is_checkpointed() else _source(x)
    if source is None:
        return conv(x)
    return cast(Any, _Convolve.apply(conv, source, x, _cast(conv.weight), _cast(conv.bias)))


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx, conv, source, x, *parameters):  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.conv, ctx.source = conv, source
        ctx.save_for_backward(*parameters)
        return _consume(conv, x, *parameters)[0]

    @staticmethod
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        needed, parameters = ctx.needs_input_grad[2:], ctx.saved_tensors
        y = _rebuilt(ctx.source)
        if torch.is_grad_enabled():
            out, *_ = _consume(ctx.conv, y.to(grad.dtype), *parameters)
            return None, None, *_gradients(out, grad, [y, *parameters], needed)
        dy, *of_parameters = _consumer_backward(ctx.conv, grad, y, parameters, (), [*needed])
        return None, None, dy, *of_parameters


def _gradients(out: Tensor, grad: Tensor, tensors: Any, needed: Any) -> list[Tensor | None]:
    """Return the gradients of the tensors that need one, by autograd, which can differentiate them again."""
    gradients = iter(torch.autograd.grad(out, [*compress(tensors, needed)], grad, create_graph=True))
    return [next(gradients) if need else None for need in needed]


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
