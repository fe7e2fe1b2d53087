"""An attention layer that hangs on a module of somebody else's network: its hooks, and what has to be known of it.

The hooks are functions and methods that pickle and copy by name, and take the module that they work on
from the call, so that copies of a network have their own.
"""

from collections import OrderedDict, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..errors import InputError
from .find import Place
from .fold import Fold, set_constant_start

CHILD = "attention"
_RECORD = "_attachment"
_SCALE = "start_scale"
_UNSHUFFLED = "unshuffled"


@dataclass
class Attachment:
    """What has to be known of an attached layer to load weights into it and to take it out.

    Attributes:
        module: The module that it belongs to.
        host: The smallest module that it and all that was folded are in.
        place: Name of the module in its host.
        fold: What was changed; None if the function was not preserved.
        order: A number that rises with each layer attached to a network.
        handles: Its hooks.
    """

    module: nn.Module
    host: nn.Module
    place: str
    fold: Fold | None
    order: int
    handles: list[RemovableHandle] = field(default_factory=list)

    def take_plain_weights(self, host: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
        """Folds weights that know nothing of attention, in ``state``; called before the host loads them."""
        self.fold_into(state, prefix, remember=True)

    def fold_into(self, state: dict[str, Any], prefix: str, *, remember: bool) -> None:
        """Folds weights that know nothing of attention, in ``state``.

        Args:
            state: State dict of a network; it is changed.
            prefix: What stands before the names of the host there.
            remember: Whether these are the weights that :func:`take_out` restores.

        Raises:
            InputError: If a module that was folded into is gone.
        """
        if self.fold is None:
            return
        prefixes = _prefixes(self.host, prefix)
        modules = self.fold.modules()
        if any(id(module) not in prefixes for module in modules):
            raise InputError(_lost(self, "a module that it was folded into"))
        children = tuple(f"{each}{CHILD}." for each in prefixes.get(id(self.module), ()))
        changed = {f"{each}{name}" for m in modules for each in prefixes[id(m)] for name in self.fold.names(m)}
        # A part of a network that holds nothing that was folded says nothing about attention.
        known = any(key in changed for key in state) if changed else any(key.startswith(prefix) for key in state)
        if not known or any(key.startswith(children) for key in state):
            return
        for module in modules:
            for each in prefixes[id(module)]:
                values = {
                    name: state[each + name]
                    for name in self.fold.names(module)
                    if each + name in state and state[each + name].shape == getattr(module, name).shape
                }
                folded = self.fold.folded(module, values, remember=remember)
                state.update({each + name: value for name, value in folded.items()})
        start = _start_of(self.module.get_submodule(CHILD))
        state.update({child + key: value for child in children for key, value in start.items()})

    def check_in_place(self, host: nn.Module, args: tuple[Any, ...]) -> None:
        """Stops a network whose folded weights have lost their attention; called before the host runs."""
        if torch.compiler.is_compiling():
            return
        try:
            there = is_attached(host.get_submodule(self.place))
        except AttributeError:
            there = False
        if not there:
            raise InputError(_lost(self, "the module that it hangs on"))


def put_in(model: nn.Module, place: Place, layer: nn.Module, fold: Fold | None, order: int) -> str:
    """Changes a network at one place; returns how its function was preserved."""
    module = model.get_submodule(place.name)
    folded = _names(model, [] if fold is None else fold.modules())
    preserved = "no" if fold is None else _start(layer, fold, [_short(model, name) for name in folded])
    host_name = _common([place.name, *(f"{name}.weight" for name in folded)])
    while host_name and not _has_weights(model.get_submodule(host_name)):  # plain weights are known by what they hold
        host_name = host_name.rpartition(".")[0]
    host = model.get_submodule(host_name)
    record = Attachment(module, host, place.name.removeprefix(f"{host_name}."), fold, order)
    module.add_module(CHILD, layer)
    _tell_compilers_apart(model, module, attached=True)
    if place.before:
        record.handles.append(module.register_forward_pre_hook(_attend_before))
    else:
        record.handles.append(module.register_forward_hook(_attend_after))
    if fold is not None:
        fold.apply()
        record.handles.append(host.register_load_state_dict_pre_hook(record.take_plain_weights))
    if folded:
        record.handles.append(host.register_forward_pre_hook(record.check_in_place))
    setattr(module, _RECORD, record)
    return preserved


def take_out(model: nn.Module, first: int = 0) -> None:
    """Takes out the layers with order ``first`` and higher, the last one first: a fold may stand on another.

    Raises:
        InputError: If a module that was folded into is gone; the network is then as it was.
    """
    records = sorted((r for _, r in attached(model) if r.order >= first), key=lambda record: -record.order)
    present = {id(module) for module in model.modules()}
    for record in records:
        if record.fold is not None and any(id(module) not in present for module in record.fold.modules()):
            raise InputError(_lost(record, "a module that it was folded into"))
    for record in records:
        for handle in record.handles:
            handle.remove()
        if record.fold is not None:
            record.fold.undo()
        delattr(record.module, CHILD)
        delattr(record.module, _RECORD)
        _tell_compilers_apart(model, record.module, attached=False)


def attached(model: nn.Module) -> Iterator[tuple[str, Attachment]]:
    """Yields the name of each module with attention in a network, and its attachment."""
    for name, module in model.named_modules():
        if is_attached(module):
            yield name, module.__dict__[_RECORD]


def is_attached(module: nn.Module) -> bool:
    """Returns whether attention hangs on this very module."""
    return _RECORD in module.__dict__


def fold_plain_weights(model: nn.Module, weights: Mapping[str, Tensor], *, remember: bool) -> dict[str, Tensor]:
    """Returns weights as the network takes them: those from before attention was attached, folded and completed.

    Args:
        model: Network.
        weights: State dict.
        remember: Whether these are the weights that :func:`take_out` restores: they are about to be loaded.
    """
    state = dict(weights)
    prefixes = _prefixes(model)
    for _, record in attached(model):
        for prefix in prefixes[id(record.host)]:
            record.fold_into(state, prefix, remember=remember)
    return state


def _prefixes(model: nn.Module, before: str = "") -> dict[int, list[str]]:
    """What stands before the names of each module in a state dict: more than one if it is registered twice."""
    found: dict[int, list[str]] = defaultdict(list)
    for name, module in model.named_modules(remove_duplicate=False):
        found[id(module)].append(f"{before}{name}." if name else before)
    return dict(found)


def _tell_compilers_apart(model: nn.Module, module: nn.Module, *, attached: bool) -> None:
    """Keeps code that ``torch.compile`` made for a network without attention from running one with it.

    Compiled code is shared by all networks of a class, and is not looked at for hooks when it is chosen
    (``torch._dynamo.config.skip_nnmodule_hook_guards``), but for the types of the dicts that hold modules.
    """
    for parent in model.modules():
        if module in parent._modules.values():
            inside = attached or any(child is not None and is_attached(child) for child in parent._modules.values())
            parent._modules = (OrderedDict if inside else dict)(parent._modules)


def _start_of(attention: nn.Module) -> dict[str, Tensor]:
    """The state of a layer at its start; the layer itself stays as it is."""
    before = {key: value.clone() for key, value in attention.state_dict().items()}
    set_constant_start(attention)
    start = {key: value.clone() for key, value in attention.state_dict().items()}
    attention.load_state_dict(before)
    return start


def _attend_after(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    return _attend(module, output)


def _attend_before(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    x, *others = args
    return (_attend(module, x), *others)


def _attend(module: Any, x: Tensor) -> Tensor:
    y = module.attention(x)
    return y * module.attention.start_scale if hasattr(module.attention, _SCALE) else y


def _start(layer: Any, fold: Fold, folded: list[str]) -> str:
    """Gives a layer the start that is folded, and says what it was folded into."""
    set_constant_start(layer)
    where = " and ".join(folded)
    if fold.source is not None:
        return f"folded into {where}"
    without = ", without shuffle" if getattr(layer, "shuffle", False) else ""
    if without:
        layer.shuffle = False
        # So that a layer that shuffles does not load its weights.
        layer.register_buffer(_UNSHUFFLED, next(layer.parameters()).new_empty(0))
    if folded:
        return f"folded into {where}{without}"
    if fold.constant == 1:
        return "identity start"
    like = next(layer.parameters())
    layer.register_buffer(_SCALE, torch.tensor(1 / fold.constant, dtype=like.dtype, device=like.device))
    return f"identity start{without}, output times {1 / fold.constant:.3f}"


def _lost(record: Attachment, what: str) -> str:
    return (
        f"the attention at {record.place} of {type(record.host).__name__} is lost: {what} was replaced or taken away, "
        f"and the weights before it are folded for attention. Convert or fuse norms first, then attach"
    )


def _names(model: nn.Module, modules: list[nn.Module]) -> list[str]:
    names = {id(module): name for name, module in model.named_modules()}
    return [names[id(module)] for module in modules]


def _short(model: nn.Module, name: str) -> str:
    last = name.rpartition(".")[2]
    return f"{type(model.get_submodule(name)).__name__} {last}" if last.isdigit() else last


def _has_weights(module: nn.Module) -> bool:
    """Whether a module has weights besides those of attention."""
    return any(f".{CHILD}." not in f".{key}" for key in module.state_dict())


def _common(names: list[str]) -> str:
    """The name of the smallest module that all of these are in."""
    common = []
    for level in zip(*(name.split(".")[:-1] for name in names), strict=False):
        if len(set(level)) > 1:
            break
        common.append(level[0])
    return ".".join(common)
