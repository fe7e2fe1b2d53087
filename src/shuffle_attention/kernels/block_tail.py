"""The registered op ``shuffle_attention::block_tail``: the end of a residual block in two passes each way.

``relu(attention(norm(u)) + shortcut)`` moves the bytes that BatchNorm, addition and ReLU alone must move,
and keeps for the backward ``u``, its own output where ReLU made it, and a few numbers a plane. The
algebra stands in :mod:`.block_reference`, whose functions are the bodies of the ops; a kernel registered
for a device takes their place.

The op itself changes nothing that it is given: it returns the batch statistics, and :func:`.fusing.block_tail`
brings the running ones up to date. Like the layer's, the op takes maps in any layout.
"""

from __future__ import annotations

from typing import Optional

import torch
from torch import Tensor

from . import block_reference
from .backends.cpu import HAS_TRITON


@torch.library.custom_op("shuffle_attention::block_tail", mutates_args=(), tags=torch.Tag.flexible_layout)
def _forward(
    u: Tensor,
    shortcut: Optional[Tensor],  # noqa: UP045 - the schema is made from the types, and a union has no schema
    weight: Tensor,
    bias: Tensor,
    mean: Optional[Tensor],  # noqa: UP045
    var: Optional[Tensor],  # noqa: UP045
    cweight: Tensor,
    cbias: Tensor,
    sweight: Tensor,
    sbias: Tensor,
    gn_weight: Tensor,
    gn_bias: Tensor,
    norm_eps: float,
    eps: float,
    shuffle: bool,
    relu: bool,
    gain: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    attention = (cweight, cbias, sweight, sbias, gn_weight, gn_bias)
    y, statistics, moments = block_reference.block_tail(
        u, shortcut, weight, bias, mean, var, attention, norm_eps, eps, shuffle, relu, gain
    )
    return torch.empty_like(u).copy_(y), statistics, moments


@torch.library.custom_op("shuffle_attention::block_tail_backward", mutates_args=(), tags=torch.Tag.flexible_layout)
def _backward(
    grad: Tensor,
    u: Tensor,
    out: Optional[Tensor],  # noqa: UP045
    statistics: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Optional[Tensor],  # noqa: UP045
    var: Optional[Tensor],  # noqa: UP045
    cweight: Tensor,
    cbias: Tensor,
    sweight: Tensor,
    sbias: Tensor,
    gn_weight: Tensor,
    gn_bias: Tensor,
    norm_eps: float,
    eps: float,
    shuffle: bool,
    has_shortcut: bool,
    gain: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients; that of the shortcut has no values where it is ``grad`` itself or nobody's."""
    attention = (cweight, cbias, sweight, sbias, gn_weight, gn_bias)
    du, dshortcut, *rest = block_reference.block_tail_backward(
        grad, u, out, weight, bias, mean, var, attention, norm_eps, eps, shuffle, gain
    )
    separate = out is not None and has_shortcut
    dshortcut = torch.empty_like(u).copy_(dshortcut) if separate else u.new_empty(0)
    return torch.empty_like(u).copy_(du), dshortcut, *rest  # pyright: ignore[reportReturnType]


@_forward.register_fake
def _(u, shortcut, weight, bias, mean, var, cw, cb, sw, sb, gw, gb, norm_eps, eps, shuffle, relu, gain=1.0):
    wide = torch.float64 if u.dtype == torch.float64 else torch.float32
    statistics = u.new_empty((u.shape[0], 3, u.shape[1]), dtype=wide)
    return torch.empty_like(u), statistics, u.new_empty((2, u.shape[1]), dtype=wide)


@_backward.register_fake
def _(
    grad, u, out, statistics, weight, bias, mean, var, cw, cb, sw, sb, gw, gb, norm_eps, eps, shuffle, has_shortcut,
    gain=1.0,
):  # fmt: skip
    dshortcut = torch.empty_like(u) if out is not None and has_shortcut else u.new_empty(0)
    return torch.empty_like(u), dshortcut, *(torch.empty_like(p) for p in (weight, bias, cw, cb, sw, sb, gw, gb))


def _keep(ctx, inputs, output):
    u, shortcut, *parameters = inputs[:-5]
    *ctx.settings, relu, ctx.gain = inputs[-5:]
    out, statistics, moments = output
    ctx.mark_non_differentiable(statistics, moments)
    ctx.set_materialize_grads(False)
    ctx.has_shortcut = shortcut is not None
    ctx.save_for_backward(u, out if relu else None, statistics, *parameters)


def _differentiate(ctx, grad, *_):
    if grad is None:
        return (None,) * 17
    u, out, statistics, *parameters = ctx.saved_tensors
    du, dshortcut, dweight, dbias, *rest = torch.ops.shuffle_attention.block_tail_backward(
        grad, u, out, statistics, *parameters, *ctx.settings, ctx.has_shortcut, ctx.gain
    )
    if out is None:
        dshortcut = grad
    return du, dshortcut if ctx.has_shortcut else None, dweight, dbias, None, None, *rest, *(None,) * 5


def _keep_all(ctx, inputs, output):
    *tensors, ctx.norm_eps, ctx.eps, ctx.shuffle, ctx.has_shortcut, ctx.gain = inputs
    ctx.save_for_backward(*tensors)


def _differentiate_twice(ctx, *grads):
    """Gradients of the backward op, for gradient penalties: autograd through its reference, recomputed."""
    grad, u, out, _, weight, bias, mean, var, *attention = ctx.saved_tensors
    with torch.enable_grad():
        leaves = [t.detach().requires_grad_() for t in (grad, u, weight, bias, *attention)]
        grad, u, weight, bias, cw, cb, sw, sb, gw, gb = leaves
        attention = (cw, cb, sw, sb, gw, gb)
        settings = (ctx.norm_eps, ctx.eps, ctx.shuffle, ctx.gain)
        outputs = list(block_reference.block_tail_backward(grad, u, out, weight, bias, mean, var, attention, *settings))
        grads = list(grads)
        if out is None or not ctx.has_shortcut:
            del outputs[1], grads[1]
    dgrad, du, dweight, dbias, *rest = torch.autograd.grad(outputs, leaves, grads, allow_unused=True)
    return dgrad, du, None, None, dweight, dbias, None, None, *rest, *(None,) * 5


if HAS_TRITON:

    @_forward.register_kernel("cuda")
    def forward_cuda(*arguments):
        from .backends.triton import block_tail as triton_block

        return triton_block.forward(*arguments)

    @_backward.register_kernel("cuda")
    def backward_cuda(*arguments):
        from .backends.triton import block_tail as triton_block

        return triton_block.backward(*arguments)


_forward.register_autograd(_differentiate, setup_context=_keep)
_backward.register_autograd(_differentiate_twice, setup_context=_keep_all)
