"""Rewriting of models for inference: folded norms, attention without shuffle, fused ends of blocks; exactly the same.

docs/shuffle.md says why the shuffle can go, and when it cannot.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.utils._pytree import tree_leaves

from ..attach import insert
from ..attach.find import Example
from ..attach.trace import example_input
from ..errors import InputError, counted, listed
from .channels import CONVOLUTIONS, TRANSPOSED, Channels, Unit, foreign_hooks, is_norm
from .fused import Activation, FusedConv2d, ResidualBlock, Rewritten

NOT_REWRITTEN = "it could not be rewritten"  # how the reason begins if a whole model is kept
_OWN_BLOCKS = {"SABasicBlock": "BasicBlock", "SABottleneck": "Bottleneck"}
_TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-3}


@dataclass
class RewriteReport:
    """Report of :func:`rewrite`; printed, it is a summary.

    Attributes:
        folded: Names of the norms that are now part of the convolution or linear layer before them.
        unshuffled: Names of the attention layers without shuffle, whose channels with one gate per plane come first.
        blocks: Names of the residual blocks that end in one op.
        reordered: Number of outputs that are brought into the model's own order of channels at the end.
        kept: What was left as it is, by its name ("" for the model), and why.
    """

    folded: list[str] = field(default_factory=list)
    unshuffled: list[str] = field(default_factory=list)
    blocks: list[str] = field(default_factory=list)
    reordered: int = 0
    kept: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [
            f"{counted(len(self.folded), 'norm')} folded, {counted(len(self.unshuffled), 'attention layer')} without "
            f"shuffle, {counted(len(self.blocks), 'residual block')} fused"
        ]
        if self.reordered:
            lines.append(f"{counted(self.reordered, 'output')} reordered at the end")
        reasons: dict[str, list[str]] = {}
        for name, reason in self.kept.items():
            reasons.setdefault(reason, []).append(name or "the model")
        return "\n".join([*lines, *(f"kept {listed(names, 3)}: {reason}" for reason, names in reasons.items())])


def rewrite(model: nn.Module, *, example: Example | None = None) -> tuple[nn.Module, RewriteReport]:
    """Return a copy of a model for inference that computes the same function to rounding, and a report.

    - BatchNorm with given statistics is folded into the convolution or linear layer before it.
    - Channels are renumbered such that shuffle attention needs no shuffle, and its channels with one gate per plane
      come first. The rows of what writes a map and the columns of what reads it follow. An output that is renumbered is
      brought into its own order at the end.
    - ReLU becomes part of the convolution before it, and the weights of convolutions are packed for the processor.
    - Residual blocks of our, timm's, torchvision's and Hugging Face's ResNets end in one op, with or without attention.

    All this follows from the data flow of one run on an example, so it applies to any model. What cannot be rewritten
    stays as it is and is in the report: a norm that does not follow a convolution, attention whose maps are read by
    anything that depends on their numbering, modules with hooks, shared parameters, half precision. The copy is
    compared with the model on random images; if they disagree, or the model does not run, the copy is not rewritten.

    Args:
        model: Model, which is not changed. Of torchvision's detectors the backbone is rewritten.
        example: Input, positional inputs (tuple) or inputs by name (dict), by default two random images of 64 pixels.

    Returns:
        The copy, in evaluation mode and without gradients of its parameters, and the report.

    Raises:
        InputError: If the model cannot be copied.

    Example:
        >>> fast, report = rewrite(timm.create_model("sa_resnet50"))  # doctest: +SKIP
        >>> print(report)  # doctest: +SKIP
        53 norms folded, 16 attention layers without shuffle, 16 residual blocks fused
    """
    with torch.inference_mode(False), torch.no_grad():
        plain = inference_copy(model)
        name = "backbone" if _is_detector(plain) else ""
        part, report = plain.get_submodule(name), RewriteReport()
        try:
            new = _Rewriting(part, example, report).result
        except Exception as error:  # a model may raise anything
            reason = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
            return plain, RewriteReport(kept={name: f"{NOT_REWRITTEN} ({reason})"})
        if name:
            _fuse_convolutions(plain)
            plain.add_module(name, new)
    return (plain if name else new), report


def inference_copy(model: nn.Module) -> nn.Module:
    """Return a copy of a model, or of what a compiled or parallel model wraps, for evaluation without gradients.

    Raises:
        InputError: If it cannot be copied.
    """
    model = getattr(model, "_orig_mod", model)
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        model = model.module
    try:
        return copy.deepcopy(model).eval().requires_grad_(False)
    except Exception as error:  # a module may raise anything
        raise InputError(
            f"{type(model).__name__} must be copied to be rewritten, which failed ({type(error).__name__}: {error})"
        ) from error


def _is_detector(model: nn.Module) -> bool:
    known = any(cls.__module__.startswith("torchvision.models.detection.") for cls in type(model).__mro__)
    return known and isinstance(getattr(model, "backbone", None), nn.Module)


class _Rewriting:
    """One rewriting of a model, in steps that change a copy in place.

    Modules get another class instead of being replaced, so that every reference to them stays valid.

    Args:
        plain: The model in evaluation mode.
        example: Its input, or None.
        report: Report to fill.

    Raises:
        InputError: If the rewritten model computes something else.
    """

    def __init__(self, plain: nn.Module, example: Example | None, report: RewriteReport):
        self.report = report
        if any(isinstance(module, torch.jit.ScriptModule) for module in plain.modules()):
            raise InputError("it is scripted or traced")
        if example is None:
            zeros = example_input(plain)
            example = torch.randn(2, *zeros.shape[1:], generator=torch.Generator().manual_seed(0)).to(zeros)
        args = example if isinstance(example, tuple) else () if isinstance(example, dict) else (example,)
        kwargs = example if isinstance(example, dict) else {}
        shared: dict[int, Any] = {id(parameter): parameter for parameter in plain.parameters()}
        self.flow = Channels(copy.deepcopy(plain, shared), args, kwargs)
        self.model = copy.deepcopy(plain)
        self.modules = dict(self.model.named_modules())
        orders = self.renumber()
        self.fold()
        for block_name, module in self.modules.items():
            self.end_in_one_op(block_name, module)
        self.result = Rewritten(self.model, len(self.flow.outputs), orders)
        self.verify(plain, args, kwargs)

    def renumber(self) -> dict[int, Tensor]:
        """Renumber the parameters of all units, remove shuffles, and return the orders of the outputs."""
        numberings, kept = self.flow.numberings()
        self.report.kept |= {name: f"its shuffle and groups: {reason}" for name, reason in kept.items()}
        renumber(self.modules, self.flow.units, numberings)
        for name, unit in self.flow.units.items():
            if unit.kind == "attention" and unit.maps[0] in numberings:
                _unshuffle(self.modules[name], numberings[unit.maps[0]])
                self.report.unshuffled.append(name)
        orders: dict[int, Tensor] = {}
        for position, each in enumerate(self.flow.outputs):
            if each in numberings:
                device = next(self.model.parameters()).device
                orders[position] = numberings[each].argsort().to(device)
        self.report.reordered = len(orders)
        return orders

    def fold(self) -> None:
        """Fold norms into the layers before them, and ReLU into convolutions."""
        flow = self.flow
        once = {name: unit for name, unit in flow.units.items() if flow.called[name] == len(unit.calls) == 1}
        once = {name: unit for name, unit in once.items() if name not in flow.shared}
        writers: dict[Any, Any] = {
            unit.calls[0][1]: self.modules[name]
            for name, unit in once.items()
            if isinstance(self.modules[name], (*CONVOLUTIONS, *TRANSPOSED, nn.Linear))
        }
        for name, module in self.modules.items():
            if is_norm(module):
                key, after = once[name].calls[0] if name in once else (None, None)
                writer = writers.get(key) if key is not None and flow.uses[key] == 1 else None
                if reason := _unfoldable(module, writer):
                    self.report.kept[name] = reason
                else:
                    _fold(module, writer)
                    writers[after] = writer
                    self.report.folded.append(name)
        _fuse_convolutions(self.model)
        for name, unit in once.items():
            module, key = self.modules[name], unit.calls[0][0]
            writer = writers.get(key)
            if type(module) is nn.ReLU and type(writer) is FusedConv2d and flow.uses[key] == 1:
                writer.relu = True
                _become(module, nn.Identity)

    def end_in_one_op(self, name: str, block: Any) -> None:
        """Turn a residual block of a known class into a :class:`ResidualBlock`."""
        known = _block_of(block)
        calls = self.flow.called[name]
        if known is None or not calls or any(foreign_hooks(module) for module in block.modules()):
            return
        around = [block.get_submodule(each) for each in known.around]
        if any(module._forward_hooks or module._forward_pre_hooks for module in around):
            return
        names = known.branch[:-1]
        branch: list[Any] = []
        for path in names:
            module = block.get_submodule(path)
            last = branch[-1] if branch else None
            own = self.flow.called[f"{name}.{path}" if name else path]
            if type(module) is nn.ReLU and type(last) is FusedConv2d and not _hooked(last) and not _hooked(module):
                last.relu = True
            elif type(module) is not nn.Identity and not (isinstance(module, nn.Dropout) or own == 0):
                branch.append(module)
        norm = block.get_submodule(known.branch[-1])
        children: Any = {
            "branch": nn.Sequential(*branch),
            "shortcut": getattr(block, known.shortcut),
            "norm": None if type(norm) is nn.Identity and not _hooked(norm) else norm,
            "sa": block._modules.get(insert.BLOCK_CHILD),
            "act": getattr(block, known.act),
        }
        if insert.HOOK_CHILD in block._modules:  # attention after the whole block
            children[insert.HOOK_CHILD] = getattr(block, insert.HOOK_CHILD)
        _become(block, ResidualBlock)
        block._modules = children
        self.report.blocks.append(name)

    def verify(self, plain: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Compare the copy with the model on the example."""
        if not same_output(plain(*args, **kwargs), self.result(*args, **kwargs)):
            raise InputError("the rewritten model computes something else")


def same_output(expected: Any, output: Any) -> bool:
    """Return whether all tensors of two outputs agree up to rounding, relative to the largest value of each."""
    for a, b in zip(tree_leaves(expected), tree_leaves(output), strict=True):
        if isinstance(a, Tensor) and a.numel():
            largest = a.detach().abs().double().nan_to_num(0, 0, 0).max().item()
            tolerance = _TOLERANCES.get(a.dtype, 0.1) * max(largest, 1e-30)
            if not torch.allclose(a.double(), b.double(), rtol=0, atol=tolerance, equal_nan=True):
                return False
    return True


@torch.no_grad()
def renumber(modules: Mapping[str, Any], units: Mapping[str, Unit], numberings: Mapping[int, Tensor]) -> None:
    """Reorder the parameters of all units but attention for new numberings of their maps, in place."""
    for name, unit in units.items():
        module, (before, after) = modules[name], (numberings.get(each) for each in unit.maps)
        if unit.kind == "dense":
            rows, columns = (1, 0) if isinstance(module, TRANSPOSED) else (0, 1)
            reorder(module.weight, columns, before)
            reorder(module.weight, rows, after)
            reorder(module.bias, 0, after)
        elif unit.kind == "channelwise" and after is not None:
            for tensor in (*module._parameters.values(), *module._buffers.values()):
                reorder(tensor if tensor is not None and tensor.shape[:1] == after.shape else None, 0, after)


def _unshuffle(layer: Any, numbering: Tensor) -> None:
    """Give attention one group, no shuffle and parameters for each channel, in a new numbering of its input."""
    n, half = layer.channels // (2 * layer.groups), layer.channels // 2
    index = numbering.to(layer.cweight.device) % (2 * n)
    channel, spatial = index[:half], index[half:] - n
    for name, chosen in (("cweight", channel), ("cbias", channel), ("sweight", spatial), ("sbias", spatial)):
        value = getattr(layer, name).detach().flatten()[chosen].reshape(1, half, 1, 1)
        setattr(layer, name, nn.Parameter(value, requires_grad=False))
    old = layer.gn
    layer.gn = nn.GroupNorm(half, half, eps=old.eps, device=index.device, dtype=old.weight.dtype).eval()
    layer.gn.weight.copy_(old.weight[spatial])
    layer.gn.bias.copy_(old.bias[spatial])
    layer.gn.requires_grad_(False)
    layer.groups, layer.shuffle = 1, False


def reorder(tensor: Tensor | None, dimension: int, order: Tensor | None) -> None:
    """Reorder a tensor along a dimension, in place."""
    if tensor is not None and order is not None:
        tensor.copy_(tensor.index_select(dimension, order.to(tensor.device)))


def _unfoldable(norm: Any, writer: Any) -> str:
    """Return why a norm cannot be folded into the layer before it; "" if it can."""
    if writer is None:
        return "its input is not the output of one convolution that nothing else reads"
    if norm.training or norm.running_mean is None or norm.running_var is None:
        return "it has no running statistics"
    if isinstance(writer, TRANSPOSED) and writer.groups > 1:
        return "it follows a transposed convolution in groups"
    types = {writer.weight.dtype, norm.running_mean.dtype, norm.running_var.dtype}
    if len(types) > 1 or types.isdisjoint(_TOLERANCES):
        return "folding it would round the weights in half precision"
    return ""


def _fold(norm: Any, layer: Any) -> None:
    """Fold a norm into the convolution or linear layer before it; the weights are computed in float64."""
    statistics = norm.running_mean, norm.running_var
    values = (layer.weight, layer.bias, *statistics, norm.weight, norm.bias)
    wide: list[Any] = [None if value is None else value.double() for value in values]
    weight, bias, mean, var, scale, shift = wide
    fused = fuse_conv_bn_weights(weight, bias, mean, var, norm.eps, scale, shift, isinstance(layer, TRANSPOSED))
    layer.weight, layer.bias = (nn.Parameter(each.to(layer.weight.dtype), requires_grad=False) for each in fused)
    act = getattr(norm, "act", None)
    _become(norm, Activation if isinstance(act, nn.Module) else nn.Identity)
    norm._parameters.clear()
    norm._buffers.clear()


def _fuse_convolutions(model: nn.Module) -> None:
    """Let all plain convolutions be :class:`FusedConv2d`."""
    for module in model.modules():
        plain = type(module) is nn.Conv2d and "forward" not in vars(module) and not foreign_hooks(module)
        if plain and module.padding_mode == "zeros" and not isinstance(module.padding, str):  # type: ignore[union-attr]
            _become(module, FusedConv2d)


def _block_of(module: nn.Module) -> insert.Block | None:
    cls = type(module)
    if cls.__module__ != "shuffle_attention.models.sa_resnet" or cls.__name__ not in _OWN_BLOCKS:
        return insert.block_of(module)
    return None if "forward" in vars(module) else insert.BLOCKS[f"timm.models.resnet.{_OWN_BLOCKS[cls.__name__]}"]


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _become(module: Any, cls: type[nn.Module]) -> None:
    module.__class__ = cls
