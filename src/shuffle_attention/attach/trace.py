"""Data flow of a model: the outputs of its modules and the operations between them, recorded in one run."""

import copy
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from ..errors import InputError

CONVOLUTIONS = ("conv1d", "conv2d", "conv3d")
_CHANNELS_SECOND = (*CONVOLUTIONS, "batch_norm", "group_norm", "instance_norm")
_CHANNELS_LAST = ("linear", "layer_norm", "rms_norm")
_WEIGHTED = (*CONVOLUTIONS, "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "linear")


@dataclass(frozen=True)
class Value:
    """A tensor that was computed from the model's input.

    Attributes:
        index: Position in the order of computation.
        shape: Shape of the tensor.
        operation: Name of the PyTorch function that computed it.
        parents: Indices of the values it was computed from, without parameters and constants.
        owner: Name of the innermost module that was running.
        depth: Number of convolutions and linear layers on the longest path from the input.
        channels_last: Whether the channels are the last dimension, as linear layers leave them.
        ancestors: Bit set of the indices of all values that it depends on.
    """

    index: int
    shape: tuple[int, ...]
    operation: str
    parents: tuple[int, ...]
    owner: str
    depth: int
    channels_last: bool
    ancestors: int


@dataclass(frozen=True)
class Call:
    """One call of a module: its tensor inputs, and its output if that is one tensor (otherwise None)."""

    name: str
    inputs: tuple[int, ...]
    output: int | None

    @property
    def passes_through(self) -> bool:
        """Whether the output is an input, as for identities, and for dropout in evaluation mode."""
        return self.output is not None and self.output in self.inputs


@dataclass
class Dataflow:
    """One run of a model: values in the order of computation, and calls in the order in which they ended."""

    values: list[Value] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)

    def by_name(self) -> dict[str, list[Call]]:
        """Return the calls of each module that was called."""
        calls: dict[str, list[Call]] = defaultdict(list)
        for call in self.calls:
            calls[call.name].append(call)
        return dict(calls)

    def outputs(self, value: int) -> list[Call]:
        """Return the calls that returned this value, innermost first."""
        return [call for call in self.calls if call.output == value]

    def children(self, value: int) -> list[Value]:
        """Return the values that were computed directly from this one."""
        return [v for v in self.values if value in v.parents]


def record(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Dataflow:
    """Return the data flow of a model on an example, in evaluation mode and without gradients.

    A copy runs. It shares the parameters, and has modules, buffers and hooks of its own, so the model is not changed.

    Raises:
        InputError: If the model cannot be copied.
    """
    shared: dict[int, Any] = {id(parameter): parameter for parameter in model.parameters()}
    try:
        twin = copy.deepcopy(model, shared).eval()
    except Exception as error:  # a module may raise anything
        raise InputError(
            f"{type(model).__name__} must be copied to be analysed, which failed ({type(error).__name__}: {error}); "
            f"if its modules keep tensors of a backward pass, run it once under torch.no_grad()"
        ) from error
    recorder = _Recorder()
    for name, module in twin.named_modules():
        recorder.watch(name, module)
    devices = [p.device for p in model.parameters() if p.device.type not in ("cpu", "meta")]
    with torch.random.fork_rng(devices[:1]), torch.no_grad(), recorder:
        recorder.begin(args, kwargs)
        twin(*args, **kwargs)
    return recorder.flow


class _Recorder(TorchFunctionMode):
    """Record every PyTorch function that is called. Tensors are distinguished by identity and version.

    The version distinguishes ``relu_(x)`` from ``x``. All tensors are kept until the end, so that no identity is used
    twice.
    """

    def __init__(self):
        super().__init__()
        self.flow = Dataflow()
        self._known: dict[int, tuple[Tensor, dict[int, int]]] = {}
        self._running: list[tuple[str, tuple[int, ...]]] = []

    def watch(self, name: str, module: nn.Module) -> None:
        def enter(module, args, kwargs):
            self._running.append((name, self._indices(args, kwargs)))

        def leave(module, args, kwargs, output):
            _, inputs = self._running.pop()
            if isinstance(output, Tensor) and self._index(output) is None and inputs:
                # Computed by something other than a PyTorch function, such as an extension.
                self._add(output, "unknown", inputs)
            index = self._index(output) if isinstance(output, Tensor) else None
            self.flow.calls.append(Call(name, inputs, index))

        module.register_forward_pre_hook(enter, with_kwargs=True)
        module.register_forward_hook(leave, with_kwargs=True)

    def begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for tensor in _tensors(args, kwargs):
            self._add(tensor, "input", ())

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        inputs = self._indices(args, kwargs)
        result = func(*args, **kwargs)
        for tensor in _tensors(result) if inputs else ():
            if self._index(tensor, exactly=True) is None:
                self._add(tensor, getattr(func, "__name__", "unknown"), inputs)
        return result

    def _indices(self, *tree: Any) -> tuple[int, ...]:
        indices = (self._index(tensor) for tensor in _tensors(*tree))
        return tuple(dict.fromkeys(index for index in indices if index is not None))

    def _index(self, tensor: Tensor, *, exactly: bool = False) -> int | None:
        """Return the index of a tensor's value; after a write through a view, that of the value before it."""
        if id(tensor) not in self._known:
            return None
        versions = self._known[id(tensor)][1]
        index = versions.get(tensor._version)
        return index if exactly or index is not None else versions[max(versions)]

    def _add(self, tensor: Tensor, operation: str, parents: tuple[int, ...]) -> None:
        values = self.flow.values
        index, depth, ancestors = len(values), 0, 0
        for parent in parents:
            depth = max(depth, values[parent].depth)
            ancestors |= values[parent].ancestors | 1 << parent
        owner = self._running[-1][0] if self._running else ""
        depth += operation in _WEIGHTED
        shape = tuple(tensor.shape)
        last = self._channels_last(operation, shape, parents)
        values.append(Value(index, shape, operation, parents, owner, depth, last, ancestors))
        version = tensor._version  # read first: this mode sees the reading
        self._known.setdefault(id(tensor), (tensor, {}))[1][version] = index

    def _channels_last(self, operation: str, shape: tuple[int, ...], parents: tuple[int, ...]) -> bool:
        if operation in _CHANNELS_SECOND:
            return False
        if operation in _CHANNELS_LAST:
            return True
        alike = [v for v in map(self.flow.values.__getitem__, parents) if len(v.shape) == len(shape)]
        before = bool(alike or parents) and (alike[0] if alike else self.flow.values[parents[0]]).channels_last
        return before != (operation == "permute" and len(shape) == len(self.flow.values[0].shape))


def _tensors(*tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


def example_input(model: nn.Module, size: int = 64) -> Tensor:
    """Return one input of zeros with the channels and dimensions that the first convolution of the model takes.

    Raises:
        LookupError: If the model has no convolution.
    """
    dimensions = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}
    for module in model.modules():
        for kind, spatial in dimensions.items():
            if isinstance(module, kind):
                weight = next((p for p in module.parameters() if p.is_floating_point()), torch.empty(0))
                shape = [1, int(module.in_channels), *[size] * spatial]  # type: ignore[call-overload]
                return torch.zeros(shape, dtype=weight.dtype, device=weight.device)
    raise LookupError("no convolution")
