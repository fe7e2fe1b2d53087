"""Removal of attention whose gates do not depend on the image: its factors become part of the layer before it."""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..attach import insert
from ..attach.find import run
from ..attach.trace import Dataflow
from ..attach.weights import attention_slots
from ..errors import InputError, counted, listed
from ..explain.gate_statistics import GateStatistics, attention_modules, gate_statistics
from .channels import CONVOLUTIONS, foreign_hooks, is_norm, kind_of
from .rewrite import inference_copy, reorder, same_output


@dataclass(frozen=True)
class BranchGates:
    """Gates of one branch of one attention layer over all images: a row of the report.

    All values are in units of the factor that the layer multiplies its input by, its gate times its gain. Distances are
    the largest of any channel.

    Attributes:
        layer: Name of the layer.
        branch: ``"channel"`` for channels with one gate per plane, ``"spatial"`` for those with one per position.
        mean: Mean factor.
        low: Smallest factor.
        high: Largest factor.
        over_images: Largest distance of the mean of a plane from the mean of its channel.
        over_positions: Largest distance of a factor from the mean of its plane.
        deviation: Largest distance of a factor from the mean of its channel, which the tolerance limits.
    """

    layer: str
    branch: str
    mean: float
    low: float
    high: float
    over_images: float
    over_positions: float
    deviation: float


@dataclass
class ConstantGatesReport:
    """Report of :func:`drop_constant_gates`; printed, it is a table.

    Attributes:
        tolerance: Largest deviation of a layer that is folded.
        images: Number of images.
        gates: Measured gates, one entry per layer and branch.
        folded: Names of the layers that are now part of the layer before them.
        kept: For each layer that stays the reason.
    """

    tolerance: float
    images: int
    gates: list[BranchGates] = field(default_factory=list)
    folded: list[str] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        head = ("layer", "branch", "mean", "smallest", "largest", "over images", "over positions", "deviation", "")
        rows = [
            (
                *(each.layer, each.branch, f"{each.mean:.4f}", f"{each.low:.4f}", f"{each.high:.4f}"),
                *(f"{each.over_images:.5f}", f"{each.over_positions:.5f}", f"{each.deviation:.5f}"),
                "folded" if each.layer in self.folded else "kept",
            )
            for each in self.gates
        ]
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        lines = [
            "  ".join(
                cell.ljust(width) if index in (0, 1, 8) else cell.rjust(width)
                for index, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in (head, *rows)
        ]
        reasons: dict[str, list[str]] = {}
        for name, reason in self.kept.items():
            reasons.setdefault(reason, []).append(name)
        layers = counted(len(self.folded) + len(self.kept), "attention layer")
        return "\n".join(
            [
                *lines,
                f"{len(self.folded)} of {layers} folded: constant within {self.tolerance:g} over "
                f"{counted(self.images, 'image')}",
                *(f"kept {listed(names, 3)}: {reason}" for reason, names in reasons.items()),
            ]
        )


def drop_constant_gates(
    model: nn.Module, batches: Iterable[Any], tolerance: float
) -> tuple[nn.Module, ConstantGatesReport]:
    """Return a copy of a model without the attention whose gates are constant over images, and a report.

    Let f be the factors of a layer: its gates times its gain. Its deviation is the largest distance |f - m| of any
    factor from the mean m of its channel over all images and positions. A layer whose deviation is at most the
    tolerance is replaced by the constant factors m: for the images that were measured, its output y changes by at most
    the tolerance times |x|, where x is its input. The factors and the shuffle then become part of the norm or the
    convolution before the layer, which is exact, and the layer is removed. A residual block without attention gets
    timm's class, so that a ResNet without attention is a plain ResNet, with its state dict.

    The layers are measured as they are, each with the others unchanged. Every kind of attention that multiplies its
    input by gates is measured: shuffle attention, SE, ECA, CBAM, SGE, and these when they are attached. A layer stays,
    and the report has the reason, if its gates are not constant, if it does something else (GC adds a context), or if
    its input is not the output of one norm or convolution that nothing else reads. Detectors are measured on their
    images and folded in the same way.

    Args:
        model: Model, which is not changed.
        batches: First arguments of the model, on its device, such as preprocessed images (B, C, H, W). They are used
            one after the other.
        tolerance: Largest deviation, at least 0.

    Returns:
        The copy, in evaluation mode and without gradients of its parameters, and the report.

    Raises:
        InputError: If the tolerance is negative, there are no batches or no attention, the model cannot be copied or
            does not run, or the folded model differs from one with constant gates.

    Example:
        >>> smaller, report = drop_constant_gates(model, loader, 0.01)  # doctest: +SKIP
        >>> print(report)  # doctest: +SKIP
    """
    if not tolerance >= 0:
        raise InputError(f"the tolerance must be at least 0, got {tolerance}")
    with torch.inference_mode(False), torch.no_grad():
        model = inference_copy(model)
        batches = iter(batches)
        example = next(batches, None)
        if example is None:
            raise InputError("there are no images to measure gates on")
        statistics, kept = gate_statistics(model, itertools.chain([example], batches))
        few = example[:2] if isinstance(example, Tensor | list | tuple) else example
        folding = _Folding(model, run(model, (few,)))
        report = ConstantGatesReport(tolerance, max((each.images for each in statistics.values()), default=0))
        for name, each in statistics.items():
            report.gates += _rows(name, each)
            if not bool((each.deviation <= tolerance).all()):
                kept[name] = f"its gates deviate by more than {tolerance:g}"
            elif reason := folding.obstacle(name):
                kept[name] = f"its gates are constant, but {reason}"
        constant = {name: each.mean for name, each in statistics.items() if name not in kept}
        report.folded, report.kept = [*constant], kept
        expected = folding.with_constants(constant)(few)
        for name, factors in constant.items():
            folding.fold(name, factors)
        _remove(model, report.folded)
        if not same_output(expected, model(few)):
            raise InputError(f"{type(model).__name__} computes something else once its constant gates are folded")
    return model, report


def _rows(name: str, statistics: GateStatistics) -> list[BranchGates]:
    rows = []
    for branch, chosen in (("channel", ~statistics.spatial), ("spatial", statistics.spatial)):
        if chosen.any():
            distances = (statistics.over_images, statistics.over_positions, statistics.deviation)
            largest = [float(each[chosen].max()) for each in distances]
            mean, low, high = statistics.mean[chosen], statistics.low[chosen], statistics.high[chosen]
            rows.append(BranchGates(name, branch, float(mean.mean()), float(low.min()), float(high.max()), *largest))
    return rows


class _Constant(nn.Module):
    """Attention with constant factors, and its shuffle."""

    def __init__(self, factors: Tensor, order: Tensor):
        super().__init__()
        self.factors, self.order = factors, order

    def forward(self, x: Tensor) -> Tensor:
        factors = self.factors.to(x).reshape(-1, *[1] * (x.dim() - 2))
        return (x * factors).index_select(1, self.order.to(x.device))


class _Folding:
    """Where the attention layers of a model are, and what is before each.

    Args:
        model: Model.
        flow: Its data flow.
    """

    def __init__(self, model: nn.Module, flow: Dataflow):
        self.model, self.flow = model, flow
        self.calls = flow.by_name()
        self.modules: dict[str, Any] = dict(model.named_modules())
        owners: dict[int, set[str]] = {}
        for name, module in self.modules.items():
            for tensor in (*module._parameters.values(), *module._buffers.values()):
                if tensor is not None:
                    owners.setdefault(id(tensor), set()).add(name)
        self.shared = {name for names in owners.values() if len(names) > 1 for name in names}

    def obstacle(self, name: str) -> str:
        """Return why a layer cannot be folded; "" if it can."""
        if any(foreign_hooks(module) for module in self.modules[name].modules()):
            return "hooks see it"
        writers, reason = self.writers(name)
        if reason:
            return reason
        shuffled = not torch.equal(order := self.order(name), torch.arange(len(order)))
        last = self.modules[writers[-1]]
        if shuffled and (is_norm(last) or kind_of(last) != "dense" or not isinstance(last, CONVOLUTIONS)):
            return "its shuffle needs a convolution in one group before it"
        if getattr(self.modules[writers[0]], "weight", None) is None:
            return f"{writers[0]} has no weight"
        return ""

    def order(self, name: str) -> Tensor:
        """Return the input channel at each output channel of a layer, (channels,)."""
        layer = self.modules[name]
        channels = self.flow.values[self.calls[name][0].inputs[0]].shape[1]
        return layer.destinations().argsort() if hasattr(layer, "destinations") else torch.arange(channels)

    def writers(self, name: str) -> tuple[list[str], str]:
        """Return the norm before a layer, if any, and the convolution before that, if any, or why there is neither."""
        if len(self.calls.get(name, ())) != 1 or len(self.calls[name][0].inputs) != 1:
            return [], "it does not run exactly once"
        reader, value, writers = name, self.calls[name][0].inputs[0], []
        while True:
            writer = self.flow.values[value].owner
            module = self.modules[writer]
            others = [
                v for v in self.flow.children(value) if v.owner != reader and not v.owner.startswith(f"{reader}.")
            ]
            norm = is_norm(module)
            reason = ""
            if not (norm and not writers) and not isinstance(module, CONVOLUTIONS):
                reason = "its input is not the output of a norm or convolution"
            elif others:
                reason = "its input is read elsewhere too"
            elif writer in self.shared or len(self.calls[writer]) != 1:
                reason = f"{writer} is used elsewhere too"
            elif kind_of(module) is None:
                reason = f"{writer} has hooks, or parameters of an unknown kind"
            if reason:
                return writers, "" if writers else reason
            writers.append(writer)
            if not norm:
                return writers, ""
            reader, value = writer, self.calls[writer][0].inputs[0]

    def with_constants(self, constant: dict[str, Tensor]) -> nn.Module:
        """Return a copy of the model with constant factors in place of layers."""
        twin = inference_copy(self.model)
        for name, factors in constant.items():
            owner, _, child = name.rpartition(".")
            setattr(twin.get_submodule(owner), child, _Constant(factors, self.order(name)))
        return twin

    def fold(self, name: str, factors: Tensor) -> None:
        """Multiply the output of what is before a layer by factors, and shuffle it as the layer does."""
        order = self.order(name)
        writers, _ = self.writers(name)
        first = self.modules[writers[0]]
        for tensor in (first.weight, first.bias):
            if tensor is not None:
                own = factors.reshape(-1, *[1] * (tensor.dim() - 1)).to(tensor.device)
                tensor.copy_((tensor.double() * own).to(tensor.dtype))
        if torch.equal(order, torch.arange(len(order))):
            return
        for writer in writers:
            module = self.modules[writer]
            for tensor in (*module._parameters.values(), *module._buffers.values()):
                reorder(tensor if tensor is not None and tensor.shape[:1] == order.shape else None, 0, order)


def _remove(model: nn.Module, names: list[str]) -> None:
    """Remove layers, and give blocks and models without attention the class of the library that they are from."""
    slots = {slot.name: slot for slot in attention_slots(model)}
    attached = [slot for name in names if isinstance(slot := slots.get(name), insert.Attached)]
    for slot in attached:
        insert.check_removable(slot)
    insert.remove(model, attached)
    for name in names:
        slot = slots.get(name)
        if slot is None:
            owner, _, child = name.rpartition(".")
            setattr(model.get_submodule(owner), child, nn.Identity())
        elif slot.child == insert.BLOCK_CHILD and slot not in attached:
            delattr(slot.owner, slot.child)  # a block of ours
        elif slot not in attached:
            setattr(slot.owner, slot.child, None)
    for module in model.modules():
        cls = type(module)
        of_timm = next((each for each in cls.__mro__ if each.__module__ == "timm.models.resnet"), None)
        if of_timm and cls.__module__.startswith("shuffle_attention.models.") and not attention_modules(module):
            module.__class__ = of_timm
            vars(module).pop("memory", None)
