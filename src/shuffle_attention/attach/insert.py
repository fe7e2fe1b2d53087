"""Insertion of attention into a model: as the end of a residual block of a known class, or by a hook of any module.

Either way the module gets a child and a class of its own, derived from the one that it had. The class is what compilers
guard on (they do not guard on hooks); it has the old name, and modules of it copy and pickle.
"""

import copyreg
import functools
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn

from ..errors import InputError

BLOCK_CHILD, HOOK_CHILD = "sa", "attention"
CHILD = {"block": BLOCK_CHILD, "after": HOOK_CHILD, "before": HOOK_CHILD}
_INSERTIONS = "_insertions"


@dataclass(frozen=True)
class Block:
    """A class of residual blocks: names of the modules that its forward pass calls, relative to the block.

    Attributes:
        branch: Modules of the branch in the order of their calls, ending with a convolution and its norm.
        act: Activation after the addition.
        shortcut: Module of the shortcut; the block may have None instead.
        drop_path: Stochastic depth of the branch; the block may have None instead.
        absent: Modules that must be None, since the fused op does not compute them.
        around: Modules that contain the end of the branch, outermost first, and identities after the norm. The fused op
            does not call them.
    """

    branch: tuple[str, ...]
    act: str
    shortcut: str = "downsample"
    drop_path: str | None = None
    absent: tuple[str, ...] = ()
    around: tuple[str, ...] = ()

    @property
    def norm(self) -> tuple[str, ...]:
        """Path to the last norm of the branch."""
        return tuple(self.branch[-1].split("."))

    @property
    def ends(self) -> tuple[str, ...]:
        """The modules that return the normalised map."""
        return self.branch[-1], *self.around


def _timm(branch: str, act: str) -> Block:
    return Block(tuple(branch.split()), act, drop_path="drop_path", absent=("se",))


def _torchvision(branch: str) -> Block:
    return Block(tuple(branch.split()), "relu")


def _transformers(*branch: str, last: str) -> Block:
    inner = (*branch, f"{last}.convolution", f"{last}.normalization")
    return Block(inner, "activation", "shortcut", around=("layer", last, f"{last}.activation"))


BLOCKS = {
    "timm.models.resnet.BasicBlock": _timm("conv1 bn1 drop_block act1 aa conv2 bn2", "act2"),
    "timm.models.resnet.Bottleneck": _timm("conv1 bn1 act1 conv2 bn2 drop_block act2 aa conv3 bn3", "act3"),
    "torchvision.models.resnet.BasicBlock": _torchvision("conv1 bn1 relu conv2 bn2"),
    "torchvision.models.resnet.Bottleneck": _torchvision("conv1 bn1 relu conv2 bn2 relu conv3 bn3"),
    "transformers.models.resnet.modeling_resnet.ResNetBasicLayer": _transformers("layer.0", last="layer.1"),
    "transformers.models.resnet.modeling_resnet.ResNetBottleNeckLayer": _transformers(
        "layer.0", "layer.1", last="layer.2"
    ),
}


def block_of(module: nn.Module) -> Block | None:
    """Return how a residual block computes; None if its class is not known, or if the block was altered."""
    root = _root(type(module))
    block = BLOCKS.get(f"{root.__module__}.{root.__qualname__}")
    if (
        block is None
        or "forward" in vars(module)
        or any(getattr(module, name, None) is not None for name in block.absent)
    ):
        return None
    try:
        for name in (*block.branch, block.act, *block.around):
            module.get_submodule(name)
    except AttributeError:
        return None
    return block


@dataclass(eq=False)
class Insertion:
    """How one attention layer was inserted.

    Attributes:
        how: ``"block"``, ``"after"`` or ``"before"``.
        start: Entries of the layer's state dict at its start as the identity; None for another start.
    """

    how: str
    start: dict[str, Tensor] | None


@dataclass(frozen=True, eq=False)
class Slot:
    """An attention layer in a model: the module that it is a child of, that module's name, and the child's name."""

    owner: nn.Module
    owner_name: str
    child: str

    @property
    def name(self) -> str:
        """Name of the layer in the model."""
        return f"{self.owner_name}.{self.child}" if self.owner_name else self.child

    @property
    def layer(self) -> nn.Module:
        """The layer itself."""
        return cast(nn.Module, getattr(self.owner, self.child))


@dataclass(frozen=True, eq=False)
class Attached(Slot):
    """An attention layer that was inserted, and how."""

    insertion: Insertion


def attached(model: nn.Module, *, every_name: bool = False) -> Iterator[Attached]:
    """Yield each attention layer that is attached in a model, once or under every name of its owner."""
    for name, module in model.named_modules(remove_duplicate=not every_name):
        for insertion in vars(module).get(_INSERTIONS, ()):
            yield Attached(module, name, CHILD[insertion.how], insertion)


def insert(place: Attached, layer: nn.Module) -> None:
    """Insert a layer."""
    _register_yolo()
    module, insertion = place.owner, place.insertion
    module.add_module(place.child, layer)
    if insertion.how == "after":
        module.register_forward_hook(_attend_after)
    elif insertion.how == "before":
        module.register_forward_pre_hook(_attend_before)
    _set_insertions(module, (*vars(module).get(_INSERTIONS, ()), insertion))


def guard(place: Attached, caller: nn.Module, path: str) -> None:
    """Let the module that calls a hooked module check, when it is called and when it is saved, that the hook is there.

    Replacing a module, as converters of norms do, drops its hooks. A new module that has the attention as its child
    gets the hook; one that has not raises an error.

    Args:
        place: Insertion by a hook.
        caller: Module whose forward pass calls the owner.
        path: Name of the owner, relative to the caller.
    """
    check = functools.partial(_keep_attention, place.insertion, path)
    caller.register_forward_pre_hook(check)
    caller.register_state_dict_pre_hook(check)


def _keep_attention(insertion: Insertion, path: str, caller: nn.Module, *_: Any) -> None:
    owner: Any = caller
    for name in path.split("."):
        owner = owner._modules.get(name) if isinstance(owner, nn.Module) else None
    if any(own is insertion for own in getattr(owner, _INSERTIONS, ())):
        return
    modules = owner.modules() if isinstance(owner, nn.Module) else ()
    if any(own is insertion for module in modules for own in getattr(module, _INSERTIONS, ())):
        return  # in a wrapper
    layer = owner._modules.get(HOOK_CHILD) if isinstance(owner, nn.Module) else None
    if layer is None:
        gone = "was removed" if owner is None else f"was replaced by {type(owner).__name__}"
        raise InputError(
            f"the attention after {path} of {type(caller).__name__} is lost, because that module {gone}. Replace "
            f"modules before attach, or move the attention: new.add_module({HOOK_CHILD!r}, old.{HOOK_CHILD}). "
            f"detach(model) gives it up"
        )
    insert(Attached(owner, path, HOOK_CHILD, insertion), layer)


def remove(model: nn.Module, places: Iterable[Attached]) -> None:
    """Undo insertions, and remove the guards of attention that has left the model."""
    for place in places:
        for hooks in (place.owner._forward_hooks, place.owner._forward_pre_hooks):
            for key in [key for key, hook in hooks.items() if hook in (_attend_after, _attend_before)]:
                del hooks[key]
        delattr(place.owner, place.child)
        _set_insertions(place.owner, tuple(x for x in vars(place.owner)[_INSERTIONS] if x is not place.insertion))
    left = {layer.insertion for layer in attached(model)}
    for hooks, key, insertion in list(guards(model)):
        if insertion not in left:
            del hooks[key]


def guards(model: nn.Module) -> Iterator[tuple[dict[int, Any], int, Insertion]]:
    """Yield each guard in a model: a dict of hooks, its key there, and the insertion that it guards."""
    for module in model.modules():
        for hooks in (module._forward_pre_hooks, module._state_dict_pre_hooks):
            for key, hook in hooks.items():
                if isinstance(hook, functools.partial) and hook.func is _keep_attention:
                    yield hooks, key, hook.args[0]


def check_removable(place: Attached) -> None:
    """Raise an InputError if the owner was given another class after attention was inserted."""
    cls = type(place.owner)
    if "_root" not in vars(cls):
        raise InputError(
            f"{cls.__name__} is a class that was made after attention was attached, as parametrisation and sharding "
            f"do; undo that first"
        )


def _set_insertions(module: nn.Module, insertions: tuple[Insertion, ...]) -> None:
    root = _root(type(module))
    if insertions:
        setattr(module, _INSERTIONS, insertions)
        module.__class__ = _attended(root, tuple(insertion.how for insertion in insertions))
    else:
        delattr(module, _INSERTIONS)
        vars(module).pop("memory", None)
        module.__class__ = root


def _root(cls: type[nn.Module]) -> type[nn.Module]:
    return vars(cls).get("_root", cls)


@functools.cache
def _attended(root: type[nn.Module], how: tuple[str, ...]) -> type[nn.Module]:
    """Return the class of modules of class ``root`` with attention."""

    def reduce(self: nn.Module, protocol: Any) -> Any:
        reduced = root.__reduce_ex__(self, protocol)
        ordinary = isinstance(reduced, tuple) and reduced[0] in (copyreg.__newobj__, copyreg._reconstructor)  # type: ignore[attr-defined]
        return (_new, (root, how), *reduced[2:]) if ordinary and type(self) is cls else reduced

    namespace = {"__module__": root.__module__, "__qualname__": root.__qualname__, "__doc__": root.__doc__}
    namespace |= {"_root": root, "__reduce_ex__": reduce}
    if "block" in how:
        namespace["forward"] = _forward_of(BLOCKS[f"{root.__module__}.{root.__qualname__}"])
        namespace["memory"] = "keep"
    cls = type(root.__name__, (root,), namespace)
    return cls


def _new(root: type[nn.Module], how: tuple[str, ...]) -> nn.Module:
    _register_yolo()
    cls = _attended(root, how)
    return cls.__new__(cls)


def _register_yolo() -> None:
    """Let ultralytics, if it is loaded, keep attached layers when it builds its models a second time."""
    if "ultralytics.nn.tasks" in sys.modules:
        from ..models import yolo  # noqa: F401


def _forward_of(block: Block) -> Any:
    """Return the forward pass of a block with attention, as few ops where that is possible."""
    from ..models.branch import run_branch  # loads timm, which hooks do not need
    from ..models.fused_block import block_end, is_hooked

    before, norm_name = [tuple(name.split(".")) for name in block.branch[:-1]], block.norm
    around = [tuple(name.split(".")) for name in block.around]

    def forward(self: Any, x: Tensor) -> Tensor:
        norm, act, downsample = _get(self, norm_name), getattr(self, block.act), getattr(self, block.shortcut)
        drop_path = None if block.drop_path is None else getattr(self, block.drop_path)
        if any(is_hooked(_get(self, name)) for name in around):
            u, norm, conv = _get(self, around[0])(x), None, None
        else:
            branch = [_get(self, name) for name in before]
            u, conv = run_branch(x, branch, self.memory), branch[-1]
        shortcut = x if downsample is None else run_branch(x, (downsample,), self.memory)
        return block_end(u, shortcut, norm, self.sa, act, drop_path, conv=conv, memory=self.memory)

    return forward


def _get(module: Any, names: tuple[str, ...]) -> Any:
    for name in names:
        module = getattr(module, name)
    return module


def _attend_after(module: Any, args: tuple[Any, ...], output: Tensor) -> Tensor:
    return module.attention(output)


def _attend_before(module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    x, *others = args
    return (module.attention(x), *others)


def runs_fused(module: nn.Module, layer: nn.Module) -> bool:
    """Return whether the end of a block with this attention is one op, on devices that have a kernel for it."""
    from ..models.fused_block import fusable

    block = block_of(module)
    return block is not None and fusable(_get(module, block.norm), layer, getattr(module, block.act))
