"""Modules of rewritten models, for inference: a convolution with ReLU, and a residual block that ends in one op."""

import functools
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._pytree import tree_flatten, tree_unflatten

from ..errors import InputError


class FusedConv2d(nn.Conv2d):
    """A convolution that applies ReLU itself if ``relu`` is set, with its weight packed for the processor.

    On the CPU, in float32 and where no gradient is recorded, oneDNN computes both in one pass. It reads its weight in a
    layout that depends on the shape of the input; PyTorch's own convolution converts the weight at every call, this one
    when the shape changes. The packed weight takes the memory of a second weight, and is neither saved nor copied.
    Everywhere else, and in traces and exported programs, this is PyTorch's convolution, and its ReLU.
    """

    relu = False
    writes_new_map = True  # so that the end of a block may be written over it
    _packed: tuple[Any, Tensor] | None = None

    def forward(self, input: Tensor) -> Tensor:
        if self._packs(input):
            own = self.padding, self.stride, self.dilation, self.groups
            act = "relu" if self.relu else "none"
            weight = self._packed_for(input)
            return torch.ops.mkldnn._convolution_pointwise(input, weight, self.bias, *own, act, [], "")
        y = super().forward(input)
        return functional.relu(y, inplace=True) if self.relu else y

    def _packs(self, x: Tensor) -> bool:
        weight = self.weight
        return (
            type(x) is Tensor
            and x.dtype == weight.dtype == torch.float32
            and x.device.type == weight.device.type == "cpu"
            and x.dim() == 4
            and x.numel() > 0
            and not (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad))
            and not (torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling() or torch.jit.is_tracing())
            and not torch._C._are_functorch_transforms_active()
            and (x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last))
            and torch._C._get_mkldnn_enabled()
            and can_pack()
        )

    def _packed_for(self, x: Tensor) -> Tensor:
        weight = self.weight.detach()
        key = (x.shape, weight.data_ptr(), 0 if weight.is_inference() else weight._version)
        packed = self._packed
        if packed is None or packed[0] != key:
            own = self.padding, self.stride, self.dilation, self.groups
            packed = key, torch.ops.mkldnn._reorder_convolution_weight(weight, *own, list(x.shape))
            self._packed = packed
        return packed[1]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_packed"}

    def extra_repr(self) -> str:
        return super().extra_repr() + (", relu=True" if self.relu else "")


@functools.cache
def can_pack() -> bool:
    """Return whether this PyTorch has oneDNN's convolution with packed weights, and computes the same with it."""
    x, weight = torch.linspace(-1, 1, 128).reshape(2, 4, 4, 4), torch.linspace(-1, 1, 288).reshape(8, 4, 3, 3)
    own = [1, 1], [1, 1], [1, 1], 1
    try:
        packed = torch.ops.mkldnn._reorder_convolution_weight(weight, *own, list(x.shape))
        y = torch.ops.mkldnn._convolution_pointwise(x, packed, None, *own, "relu", [], "")
        return torch.allclose(y, functional.conv2d(x, weight, padding=1).relu(), rtol=1e-4, atol=1e-5)
    except (AttributeError, RuntimeError, TypeError):
        return False


class ResidualBlock(nn.Module):
    """A residual block, ``relu(attention(norm(branch(x))) + shortcut(x))``, which ends in one op.

    Blocks of known classes become blocks of this class; see :func:`.rewrite.rewrite`.

    Shape:
        (B, C, H, W) to (B, C', H', W').
    """

    branch: nn.Sequential
    shortcut: nn.Module | None
    norm: nn.Module | None
    sa: nn.Module | None
    act: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        from ..models.fused_block import block_end  # loads timm, which other models do not need

        u = self.branch(x)
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return block_end(u, shortcut, self.norm, self.sa, self.act, None, conv=self.branch[-1])


class Activation(nn.Module):
    """The activation of a norm of timm that was folded into the convolution before it."""

    def forward(self, x: Tensor) -> Tensor:
        return cast(Any, self).act(cast(Any, self).drop(x))


class Rewritten(nn.Module):
    """A model in evaluation mode whose maps may have another numbering of their channels than those of its original.

    It takes and returns what the original does. Parts of it, such as ``forward_features``, cannot be called from
    outside, since their maps may be renumbered.

    Args:
        model: The renumbered model.
        outputs: Number of tensors and other leaves that it returns.
        orders: For outputs that are renumbered, by their position, where each channel of the original is.
    """

    def __init__(self, model: nn.Module, outputs: int, orders: dict[int, Tensor]):
        super().__init__()
        self.model = model
        self.outputs = outputs
        self.positions = tuple(orders)
        for position, order in orders.items():
            self.register_buffer(f"order{position}", order, persistent=False)
        self.eval()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = self.model(*args, **kwargs)
        if isinstance(output, Tensor) and not self.positions:
            return output
        leaves, structure = tree_flatten(output)
        if len(leaves) != self.outputs:
            raise InputError(
                f"the model returned {len(leaves)} values, and {self.outputs} when it was rewritten; rewrite it with "
                f"an example that has the same arguments"
            )
        for position in self.positions:
            leaves[position] = leaves[position].index_select(1, getattr(self, f"order{position}"))
        return tree_unflatten(leaves, structure) if self.positions else output

    def train(self, mode: bool = True) -> "Rewritten":
        if mode:
            raise InputError("a rewritten model is for evaluation only; train the model that it was made from")
        return super().train(False)
