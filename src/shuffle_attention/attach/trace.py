"""What flows where in a network: its modules' outputs and the operations between them, seen in one run."""

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
    """A tensor that was computed from the network's input.

    Attributes:
        index: Place in the order of computation.
        shape: Its shape.
        operation: Name of the PyTorch function that made it.
        parents: What it was made from, without parameters and constants.
        parameters: The ids of the parameters it was made with.
        owner: Name of the innermost module that was running.
        depth: Convolutions and linear layers on the longest way from the input.
        channels_last: Whether its channels are in the last dimension, as linear layers leave them.
        ancestors: A bit for the index of each value that it depends on.
    """

    index: int
    shape: tuple[int, ...]
    operation: str
    parents: tuple[int, ...]
    parameters: frozenset[int]
    owner: str
    depth: int
    channels_last: bool
    ancestors: int


@dataclass(frozen=True)
class Call:
    """A module that ran: its tensor inputs, and its output where that is one tensor (else None)."""

    name: str
    inputs: tuple[int, ...]
    output: int | None

    @property
    def passes_through(self) -> bool:
        """Whether it gave back what it was given, as identities and dropout do in evaluation mode."""
        return self.output is not None and self.output in self.inputs


@dataclass
class Dataflow:
    """One run of a network: values in the order they were computed, calls in the order they ended, and its results."""

    values: list[Value] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    results: tuple[int, ...] = ()

    def by_name(self) -> dict[str, list[Call]]:
        found: dict[str, list[Call]] = defaultdict(list)
        for call in self.calls:
            found[call.name].append(call)
        return dict(found)

    def outputs(self, value: int) -> list[Call]:
        """The calls that gave this value, innermost first."""
        return [call for call in self.calls if call.output == value]

    def children(self, value: int) -> list[Value]:
        """What was computed directly from this value."""
        return [v for v in self.values if value in v.parents]

    def uses(self, parameter: Tensor) -> int:
        """How many values were computed directly with this parameter."""
        return sum(id(parameter) in v.parameters for v in self.values)


def record(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Dataflow:
    """Returns what happens when the network runs on an example, in evaluation mode and without gradients.

    A copy runs, which shares the parameters and has its own modules, buffers and hooks: whatever
    happens, the network itself stays as it is.

    Raises:
        InputError: If it cannot be copied.
    """
    shared: dict[int, Any] = {id(parameter): parameter for parameter in model.parameters()}
    try:
        twin = copy.deepcopy(model, shared).eval()
    except Exception as error:  # whatever a module may raise
        raise InputError(
            f"{type(model).__name__} cannot be looked at, for it cannot be copied ({type(error).__name__}: {error}); "
            f"tensors of a backward pass that its modules keep are gone after a forward pass under torch.no_grad()"
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
    """Sees every PyTorch function that is called. Tensors are told apart by identity and version.

    The version tells ``relu_(x)`` from ``x``. All tensors are kept until the end, so that none takes
    the identity of one that is gone.
    """

    def __init__(self):
        super().__init__()
        self.flow = Dataflow()
        self._known: dict[int, tuple[Tensor, dict[int, int]]] = {}
        self._running: list[tuple[str, tuple[int, ...]]] = []

    def watch(self, name: str, module: nn.Module) -> None:
        def entered(module, args, kwargs):
            self._running.append((name, self._indices(args, kwargs)))

        def left(module, args, kwargs, output):
            _, inputs = self._running.pop()
            if isinstance(output, Tensor) and self._index(output) is None and inputs:
                # Made by something that is no PyTorch function, such as an extension of its own.
                self._add(output, "unknown", inputs, frozenset())
            found = self._index(output) if isinstance(output, Tensor) else None
            self.flow.calls.append(Call(name, inputs, found))
            if not name:
                self.flow.results = self._indices(output)

        module.register_forward_pre_hook(entered, with_kwargs=True)
        module.register_forward_hook(left, with_kwargs=True)

    def begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for tensor in _tensors(args, kwargs):
            self._add(tensor, "input", (), frozenset())

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        inputs = self._indices(args, kwargs)
        made = func(*args, **kwargs)
        if inputs:
            parameters = frozenset(id(t) for t in _tensors(args, kwargs) if isinstance(t, nn.Parameter))
            for tensor in _tensors(made):
                if self._index(tensor, exactly=True) is None:
                    self._add(tensor, getattr(func, "__name__", "unknown"), inputs, parameters)
        return made

    def _indices(self, *tree: Any) -> tuple[int, ...]:
        found = (self._index(tensor) for tensor in _tensors(*tree))
        return tuple(dict.fromkeys(index for index in found if index is not None))

    def _index(self, tensor: Tensor, *, exactly: bool = False) -> int | None:
        """The value that a tensor holds; one that was written to through a view is taken for what it was before."""
        if id(tensor) not in self._known:
            return None
        versions = self._known[id(tensor)][1]
        index = versions.get(tensor._version)
        return index if exactly or index is not None else versions[max(versions)]

    def _add(self, tensor: Tensor, operation: str, parents: tuple[int, ...], parameters: frozenset[int]) -> None:
        values = self.flow.values
        index, depth, ancestors = len(values), 0, 0
        for parent in parents:
            depth = max(depth, values[parent].depth)
            ancestors |= values[parent].ancestors | 1 << parent
        owner = self._running[-1][0] if self._running else ""
        depth += operation in _WEIGHTED
        shape = tuple(tensor.shape)
        last = self._channels_last(operation, shape, parents)
        values.append(Value(index, shape, operation, parents, parameters, owner, depth, last, ancestors))
        version = tensor._version
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
    """Returns one input of zeros with as many channels and dimensions as the network's first convolution takes.

    Raises:
        LookupError: If the network has no convolution.
    """
    dimensions = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}
    for module in model.modules():
        for kind, spatial in dimensions.items():
            if isinstance(module, kind):
                weight = next((p for p in module.parameters() if p.is_floating_point()), torch.empty(0))
                shape = [1, int(module.in_channels), *[size] * spatial]  # type: ignore[call-overload]
                return torch.zeros(shape, dtype=weight.dtype, device=weight.device)
    raise LookupError("no convolution")
