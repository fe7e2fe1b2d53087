"""Numberings of channels: which maps of a model share one, and in which one attention needs no shuffle.

A map has its channels in dimension 1, and a *numbering* is their order. Convolutions in one group and linear layers
read any numbering and write any other, by their columns and rows. Norms, activations, additions, pooling and other
operations that treat channels alike keep the numbering, so all their maps share it. Anything else, such as a reshape
that splits channels, a concatenation or a convolution in groups, needs the model's own numbering. So does whatever else
sees a map: the input, and hooks.

Shuffle attention has a numbering before it and one after it, which differ by the shuffle. For maps that are connected
in this way, :meth:`Channels.numberings` finds the numberings in which no shuffle is needed and the channels with one
gate per plane come first. The operations that treat channels alike are not listed: each is run on random values, and
on the same values with their channels in another order.
"""

import functools
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from ..attach import insert
from ..attention.shuffle import ShuffleAttention

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
NORMS = {
    "torch.nn.modules.batchnorm.BatchNorm1d",
    "torch.nn.modules.batchnorm.BatchNorm2d",
    "torch.nn.modules.batchnorm.BatchNorm3d",
    "torch.nn.modules.batchnorm.SyncBatchNorm",
    "torchvision.ops.misc.FrozenBatchNorm2d",
    "timm.layers.norm_act.BatchNormAct2d",
}
_READS = ("__get__", "size", "dim", "numel", "stride", "is_floating_point", "is_contiguous", "__len__")
Key = tuple[int, int]  # a tensor and its version, which a write in place raises


@dataclass
class Unit:
    """A module that follows the numberings of its maps by the order of its parameters.

    Attributes:
        kind: "dense", "channelwise", "attention", "relu" or "grouped", convolutions in groups, which fix maps.
        calls: Input and output of each call.
        maps: Indices of the map before and the map after it.
        spatial: For attention, whether each channel has one gate per position.
    """

    kind: str
    calls: list[tuple[Key, Key]] = field(default_factory=list)
    maps: tuple[int, int] = (0, 0)
    spatial: Tensor | None = None


def is_norm(module: nn.Module) -> bool:
    """Return whether a module is a BatchNorm of a known class, without parameters in an activation of it."""
    cls = insert._root(type(module))
    act = getattr(module, "act", None)  # of timm's norms
    inner = isinstance(act, nn.Module) and any(True for _ in act.parameters())
    return f"{cls.__module__}.{cls.__qualname__}" in NORMS and not inner


def kind_of(module: Any) -> str | None:
    """Return the kind of :class:`Unit` that a module is; None if its parameters cannot be renumbered."""
    cls = insert._root(type(module))
    if "forward" in vars(module) or foreign_hooks(module):
        return None
    if cls is nn.Linear or (cls in CONVOLUTIONS + TRANSPOSED and module.groups == 1):
        return "dense"
    if cls in CONVOLUTIONS:
        return "channelwise" if module.groups == module.in_channels == module.out_channels else "grouped"
    kinds = {ShuffleAttention: "attention", nn.ReLU: "relu"}
    return "channelwise" if is_norm(module) else kinds.get(cls)


def foreign_hooks(module: nn.Module) -> list[Any]:
    """Return the forward hooks of a module that :func:`attach` did not register."""
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    own = (insert._attend_after, insert._attend_before, insert._keep_attention)
    return [hook for hook in hooks if getattr(hook, "func", hook) not in own]


class Channels(TorchFunctionMode):
    """One run of a model: its maps, what connects their numberings, and what fixes them.

    Args:
        model: Model in evaluation mode. Its hooks remain, so give it a copy.
        args: Its inputs.
        kwargs: Its inputs by name.

    Attributes:
        units: Units by name.
        uses: How often each tensor was read.
        called: Number of calls of each module.
        shared: Names of modules whose parameters are used by others too.
        outputs: The map of each output of the model; None for an output that is not a map.
    """

    def __init__(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]):
        super().__init__()
        self.units: dict[str, Unit] = {}
        self.uses: Counter[Key] = Counter()
        self.called: Counter[str] = Counter()
        self._sizes: list[int] = []  # number of channels of each map
        self._edges: dict[int, list[tuple[int, Tensor | None]]] = defaultdict(list)
        self._fixed: dict[int, str] = {}
        self._maps: dict[int, int] = {}
        self._alive: list[Tensor] = []  # so that no identity is used twice
        self._running = [""]
        self._unit: str | None = None
        self._unseen = ""  # where a tensor came from nowhere
        self._owners: dict[int, list[str]] = defaultdict(list)
        for name, module in model.named_modules():
            for own in {id(t) for t in (*module._parameters.values(), *module._buffers.values()) if t is not None}:
                self._owners[own].append(name)
        self.shared = {name for names in self._owners.values() if len(names) > 1 for name in names}
        self._constants: set[int] = set()
        self._keep_constants(leaf for module in model.modules() for leaf in tree_leaves(vars(module)))
        for name, module in model.named_modules():
            self._watch(name, module)
        for tensor in _tensors(args, kwargs):
            self._fix([tensor], "it is the input of the model")
        devices = [p.device for p in model.parameters() if p.device.type not in ("cpu", "meta")]
        with torch.random.fork_rng(devices[:1]), torch.no_grad(), self:
            output = model(*args, **kwargs)
        self.outputs: list[int | None] = []
        for leaf in tree_leaves(output):
            self._read(_tensors(leaf))
            self.outputs.append(self._maps.get(id(leaf)))

    def numberings(self) -> tuple[dict[int, Tensor], dict[str, str]]:
        """Return the numberings in which attention needs no shuffle, and why some attention keeps its own.

        Returns:
            For each renumbered map the original channel at each position, (C,); and for each attention layer that
            cannot be renumbered the reason.
        """
        for name in self.shared & set(self.units):
            self._fixed |= dict.fromkeys(self.units[name].maps, f"the parameters of {name} are used elsewhere too")
        layers = {name: unit for name, unit in self.units.items() if unit.kind == "attention"}
        numberings: dict[int, Tensor] = {}
        kept: dict[str, str] = {}
        for name, layer in layers.items():
            if name in kept or layer.maps[0] in numberings:
                continue
            relative, agree = self._connected(layer.maps[0])
            inside = {other: unit for other, unit in layers.items() if unit.maps[0] in relative}
            patterns = [unit.spatial[relative[unit.maps[0]]] for unit in inside.values() if unit.spatial is not None]
            reason = self._unseen or next((self._fixed[each] for each in relative if each in self._fixed), "")
            if not reason and not agree:
                reason = "its output is added to its input, in another order of channels"
            if not reason and any(not torch.equal(pattern, patterns[0]) for pattern in patterns):
                reason = "attention of other groups writes the same maps"
            if reason:
                kept |= dict.fromkeys(inside, reason)
            else:
                order = patterns[0].int().argsort(stable=True)
                numberings |= {each: channels[order] for each, channels in relative.items()}
        return numberings, kept

    def _connected(self, start: int) -> tuple[dict[int, Tensor], bool]:
        """Return the numbering of each connected map relative to that of one map, and whether all paths agree."""
        relative, agree = {start: torch.arange(self._sizes[start])}, True
        queue = [start]
        for each in queue:  # grows
            for other, change in self._edges[each]:
                channels = relative[each] if change is None else change[relative[each]]
                if other not in relative:
                    relative[other] = channels
                    queue.append(other)
                elif not torch.equal(relative[other], channels):
                    agree = False
        return relative, agree

    def _watch(self, name: str, module: nn.Module) -> None:
        kind, hooked = kind_of(module), bool(foreign_hooks(module))
        given: Any = []

        def enter(_, args, kwargs):
            self._running.append(name)
            self.called[name] += 1
            inputs = _tensors(args, kwargs)
            if self._unit is None and hooked:
                self._show(inputs, name)
            if self._unit is None and kind and name not in self.shared and len(inputs) == 1:
                self._unit = name
                self._read(inputs)
                given[:] = inputs[0], _key(inputs[0])

        def leave(module, args, kwargs, output):
            self._running.pop()
            if self._unit == name:
                self._unit = None
                self._called(name, str(kind), module, given[0], given[1], output)

        def show(module, args, kwargs, output):
            if self._unit is None and hooked:
                self._show(_tensors(output), name)

        module.register_forward_pre_hook(enter, with_kwargs=True)
        module.register_forward_hook(leave, with_kwargs=True, prepend=True)  # attention may follow in a hook
        module.register_forward_hook(show, with_kwargs=True)

    def _called(self, name: str, kind: str, module: Any, x: Tensor, given: Key, output: Tensor) -> None:
        """Record one call of a unit."""
        unit = self.units.setdefault(name, Unit(kind))
        maps = self._map(x), self._map(output)
        unit.calls.append((given, _key(output)))
        if len(unit.calls) == 1:
            unit.maps = maps
        for each, first in zip(maps, unit.maps, strict=True):
            if kind != "relu":  # without parameters; one may serve maps of several sizes
                self._join(each, first)
        if kind == "attention":
            unit.spatial = module.spatial_channels()
            self._join(*maps, module.destinations())
        elif kind in ("channelwise", "relu"):
            self._join(*maps)
        elif kind == "grouped":
            self._fix([x, output], f"{name} is a convolution in groups")
        elif x.dim() != 2 and isinstance(module, nn.Linear):
            self._fix([x, output], f"{name} takes the channels of another dimension")

    def _show(self, tensors: list[Tensor], name: str) -> None:
        self._fix(tensors, f"hooks of {name or 'the model'} see it")
        self._read(tensors)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "unknown")
        if self._unit is not None:
            return func(*args, **kwargs)
        if name in _READS and not _tensors(result := func(*args, **kwargs)):
            return result
        inputs = _tensors(args, kwargs)
        known = [tensor for tensor in inputs if id(tensor) in self._maps]
        self.shared |= {owner for tensor in inputs for owner in self._owners.get(id(tensor), ())}
        self._read(inputs)
        if not known:
            result = func(*args, **kwargs)
            self._keep_constants(tree_leaves(result))
            return result
        alike = self._treats_alike(func, args, kwargs, known)
        before = [tensor._version for tensor in inputs]
        result = func(*args, **kwargs)
        written = [tensor for tensor, version in zip(inputs, before, strict=True) if tensor._version != version]
        changed = [*_tensors(result), *written]
        joined = [t for t in known if t.dim() > 1 and t.shape[1] > 1]
        if alike and all(id(tensor) in self._maps for tensor in written):
            for tensor in changed:
                new = self._map(tensor)
                if joined and self._sizes[new] == self._sizes[self._map(joined[0])]:
                    for each in joined:
                        self._join(self._map(each), new)
                elif self._sizes[new] > 1:
                    self._fix([tensor], f"{name} in {self._where} writes it")
        else:
            self._fix([*known, *changed], f"{name} in {self._where} depends on the order of its channels")
        return result

    @property
    def _where(self) -> str:
        return self._running[-1] or "the model"

    def _treats_alike(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], known: list[Tensor]) -> bool:
        """Return whether a function commutes with a new order of the channels of all its inputs.

        Outputs with other channels must not depend on the order.
        """
        sizes = {t.shape[1] for t in known if t.dim() > 1 and t.shape[1] > 1}
        if len(sizes) > 1:
            return False
        size = max(sizes, default=0)
        order = torch.randperm(size, device=known[0].device).roll(1)
        if size and torch.equal(order, order.sort().values):
            order = order.roll(1)
        values = {id(t): torch.randn_like(t) if t.is_floating_point() else t.clone() for t in known}
        moved = {key: t.index_select(1, order) if _size(t) == size > 0 else t.clone() for key, t in values.items()}
        try:
            runs = []
            for given in (values, moved):
                swap = functools.partial(lambda given, leaf: given.get(id(leaf), leaf), given)
                new_args, new_kwargs = tree_map(swap, (args, kwargs))
                runs.append([*tree_leaves(func(*new_args, **new_kwargs)), *given.values()])
            pairs = list(zip(*runs, strict=True))
            return all(_same(a, b, order) for a, b in pairs)
        except Exception:  # a function may raise anything for other values
            return False

    def _read(self, tensors: list[Tensor]) -> None:
        for tensor in tensors:
            self.uses[_key(tensor)] += 1
            if id(tensor) not in self._maps and id(tensor) not in self._constants:
                self._unseen = f"{self._where} computes with something other than PyTorch functions"

    def _map(self, tensor: Tensor) -> int:
        if id(tensor) not in self._maps:
            self._maps[id(tensor)] = len(self._sizes)
            self._sizes.append(_size(tensor))
            self._alive.append(tensor)
            if id(tensor) in self._constants:
                self._fix([tensor], "it is constant")
        return self._maps[id(tensor)]

    def _keep_constants(self, leaves: Iterable[Any]) -> None:
        tensors = _tensors(list(leaves))
        self._alive += tensors
        self._constants |= {id(tensor) for tensor in tensors}

    def _fix(self, tensors: list[Tensor], reason: str) -> None:
        for tensor in tensors:
            self._fixed.setdefault(self._map(tensor), reason)

    def _join(self, a: int, b: int, moved_to: Tensor | None = None) -> None:
        """Connect two maps: channel c of the first is channel ``moved_to[c]`` of the second, or the same."""
        if a != b or moved_to is not None:
            self._edges[a].append((b, moved_to))
            self._edges[b].append((a, None if moved_to is None else moved_to.argsort()))


def _tensors(*tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _key(tensor: Tensor) -> Key:
    return id(tensor), tensor._version


def _size(tensor: Tensor) -> int:
    return tensor.shape[1] if tensor.dim() > 1 else 0


def _same(a: Any, b: Any, order: Tensor) -> bool:
    """Return whether a value did not change, or only by the order of its channels."""
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return type(a) is type(b) and bool(a == b)
    if a.shape != b.shape:
        return False
    if _size(a) == len(order) > 0:
        a = a.index_select(1, order)
    if not a.is_floating_point():
        return torch.equal(a, b)
    return torch.allclose(a.double(), b.double(), rtol=1e-2, atol=1e-2, equal_nan=True)
