"""Places for attention in a model: presets, globs and predicates resolved to modules and their channels."""

import difflib
import fnmatch
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..errors import InputError, listed
from .trace import CONVOLUTIONS, Dataflow, Value, example_input, record

PRESETS = {
    "residual": "before each residual addition",
    "stage": "after the last block of each resolution",
    "last": "before the last residual addition of each resolution",
}
Where = str | Sequence[str] | Callable[[str, nn.Module], bool]
Example = Tensor | tuple[Any, ...] | dict[str, Any]

_ADDITIONS = ("add", "add_", "__add__", "__radd__", "__iadd__")
# Operations allowed between the last module of a branch and the addition: layer scale, change of type or layout.
_ELEMENTWISE = ("mul", "__mul__", "__rmul__", "mul_", "__imul__", "to", "type", "float", "contiguous", "clone")


@dataclass(frozen=True)
class Place:
    """Where one attention layer is inserted.

    Attributes:
        name: Name of the module that the layer follows.
        value: Index of the map in the data flow.
        channels: Number of channels of the map.
        before: Whether the layer precedes the module instead. This is so for identities, dropout and stochastic depth:
            what they drop in training must be dropped after attention.
    """

    name: str
    value: int
    channels: int
    before: bool


def find_places(
    model: nn.Module, where: Where, example: Example | None = None, attached: Collection[str] = ()
) -> tuple[list[Place], Dataflow]:
    """Return the places that ``where`` names, in the order of computation, and the data flow of the model.

    The model runs once on an example. The presets follow from the data flow and not from names or classes, so they
    work for models that are not listed anywhere:

    - A *residual addition* adds two maps of one shape that come from one map: the shortcut through at most one
      convolution, the branch through more. Attention follows the last module of the branch, in most models a
      norm. Layer scale may come after it.
    - A *block* is a module of the same class as one that contains a residual addition; it may have none itself, as
      where a stride forbids it. A *stage* is all blocks whose outputs have one height and width. In a model without
      residual additions it is everything at one height and width of more than one pixel with at least two
      convolutions, and ends with the last of its outermost modules.

    Args:
        model: Model.
        where: A preset, a glob over module names in which ``*`` matches dots as well, a list of globs, or a predicate
            of name and module. The name of an ``nn.Sequential`` stands for its last module.
        example: Input, positional inputs (tuple) or inputs by name (dict) for the model. By default one image of
            zeros, 64 pixels wide, with the channels of the first convolution.
        attached: Names of attention layers that are attached already; they and their children are not places.

    Raises:
        InputError: If the model does not run, nothing matches, or a match is not a place.
    """
    finder = _Finder(model, example, attached)
    places = finder.preset(where) if isinstance(where, str) and where in PRESETS else finder.matching(where)
    doubled = [p for i, p in enumerate(places) if any(q.value == p.value for q in places[:i])]
    if doubled:
        raise InputError(f"{', '.join(p.name for p in doubled)} would attend to a map that is attended to already")
    return sorted(places, key=lambda place: place.value), finder.flow


class _Finder:
    def __init__(self, model: nn.Module, example: Example | None, attached: Collection[str]):
        self.model = model
        self.attached = attached
        self.modules = {
            name: module
            for name, module in model.named_modules()
            if name and not any(name == layer or name.startswith(f"{layer}.") for layer in attached)
        }
        self.flow = run(model, example)
        self.calls = self.flow.by_name()
        self.dimensions = len(self.flow.values[0].shape)

    def preset(self, name: str) -> list[Place]:
        additions = self.additions()
        if name == "stage":
            return self.stages(additions)
        if name == "last":
            additions = list({addition.shape[2:]: (addition, branch) for addition, branch in additions}.values())
        places = [place for _, branch in additions if (place := self.end_of(branch))]
        if not places:
            raise InputError(
                f"where={name!r} stands {PRESETS[name]}, and {type(self.model).__name__} has "
                + ("residual additions of maps that no module returns" if additions else "no residual addition")
                + "; where='stage', a glob over module names or a predicate would work"
            )
        return list({place.value: place for place in places}.values())

    def additions(self) -> list[tuple[Value, Value]]:
        """Return each residual addition with the end of its branch."""
        values, additions = self.flow.values, []
        for addition in values:
            if addition.operation not in _ADDITIONS or len(addition.parents) != 2:
                continue
            shortcut, branch = sorted((values[index] for index in addition.parents), key=lambda value: value.depth)
            common = (shortcut.ancestors | 1 << shortcut.index) & (branch.ancestors | 1 << branch.index)
            if not common or branch.shape != shortcut.shape or len(branch.shape) != self.dimensions:
                continue
            fork = values[common.bit_length() - 1]
            if shortcut.depth - fork.depth <= 1 and branch.depth > shortcut.depth:
                additions.append((addition, branch))
        return additions

    def end_of(self, branch: Value) -> Place | None:
        """Return the last module of a branch that can be attended to.

        If several return the same map, such as a norm and the container of convolution and norm, it is the outermost:
        the inner ones may be replaced, as when norms are synchronised or fused.
        """
        while True:
            calls = reversed(self.flow.outputs(branch.index))
            for call in sorted(calls, key=lambda call: call.passes_through):
                if call.name in self.attached:
                    raise InputError(f"attention is attached already: {call.name}; detach(model) removes it")
                place = self.place(call.name) if call.name in self.modules else None
                if isinstance(place, Place):
                    return place
            if branch.operation not in _ELEMENTWISE or len(branch.parents) != 1:
                return None
            branch = self.flow.values[branch.parents[0]]
            if len(self.flow.children(branch.index)) != 1:
                return None

    def stages(self, additions: list[tuple[Value, Value]]) -> list[Place]:
        blocks = {type(self.modules[addition.owner]) for addition, _ in additions if addition.owner in self.modules}
        convolutions = [v.shape[2:] for v in self.flow.values if v.operation in CONVOLUTIONS]
        ends: dict[tuple[int, ...], Place] = {}
        for call in self.flow.calls:
            module = self.modules.get(call.name)
            if module is None or (blocks and type(module) not in blocks):
                continue
            place = self.place(call.name)
            if not isinstance(place, Place):
                continue
            size = self.flow.values[place.value].shape[2:]
            inner = size in ends and call.name.count(".") > ends[size].name.count(".")
            pooled = max(size) == 1  # squeeze-and-excitation and heads compute on such maps
            if blocks or (convolutions.count(size) > 1 and not inner and not pooled):
                ends[size] = place
        if not ends:
            raise InputError(f"where='stage' finds no map with two convolutions in {type(self.model).__name__}")
        return list(ends.values())

    def matching(self, where: Where) -> list[Place]:
        if isinstance(where, str | list | tuple):
            globs = [where] if isinstance(where, str) else where
            for each in globs:
                if not isinstance(each, str) or not any(fnmatch.fnmatchcase(name, each) for name in self.modules):
                    raise InputError(
                        f"where={each!r} matches no module of {type(self.model).__name__}; {self._hint(each)}"
                    )
            names = [name for name in self.modules if any(fnmatch.fnmatchcase(name, each) for each in globs)]
        elif callable(where) and not isinstance(where, type | nn.Module):
            names = [name for name, module in self.modules.items() if where(name, module)]
        else:
            raise InputError(
                f"where must be a preset, globs or a predicate of name and module, got {where!r}; for all modules "
                f"of a class: where=lambda name, module: isinstance(module, nn.BatchNorm2d)"
            )
        if not names:
            raise InputError(f"where={where!r} matches no module of {type(self.model).__name__}; {self._hint(where)}")
        places = {name: self.place(self.last_of(name)) for name in names}
        faults = {name: fault for name, fault in places.items() if isinstance(fault, str)}
        if faults:
            shown = listed([f"{name} {fault}" for name, fault in faults.items()], 4)
            raise InputError(
                f"attention cannot be attached at {len(faults)} of the {len(names)} modules that match: {shown}"
            )
        return list({place.name: place for place in places.values() if isinstance(place, Place)}.values())

    def last_of(self, name: str) -> str:
        """Return the module itself, or the last child of an ``nn.Sequential``, which would run attention itself."""
        while type(self.modules[name]).forward is nn.Sequential.forward and len(self.modules[name]._modules):
            name = f"{name}.{list(self.modules[name]._modules)[-1]}"
        return name

    def place(self, name: str) -> Place | str:
        """Return the place at a module, or the reason why there is none."""
        if isinstance(self.modules[name], nn.Sequential | nn.ModuleList | nn.ModuleDict):
            return "is a container, which would run attention as one of its children"
        outer = [name.rsplit(".", depth)[0] for depth in range(1, name.count(".") + 1)]
        fused = next((each for each in outer if hasattr(self.modules[each], "forward_fuse")), None)
        if fused is not None:
            return f"is replaced when ultralytics fuses {fused}, as it does before it predicts; {fused} is not"
        calls = self.calls.get(name, [])
        if not calls:
            return "is not called when the model runs"
        if len(calls) > 1:
            return f"is called {len(calls)} times in one pass, for maps that may have different channels"
        call = calls[0]
        if call.output is None:
            return "does not return one tensor"
        value = self.flow.values[call.output]
        shape = value.shape
        if len(shape) != self.dimensions or len(shape) < 3:
            return f"returns {shape}, which is not a map (B, C, *spatial)"
        if value.channels_last:
            return f"returns {shape}, which has its channels in the last dimension and not in the second"
        return Place(name, call.output, shape[1], call.passes_through)

    def _hint(self, where: Where) -> str:
        presets = ", ".join(f"{name!r} ({meaning})" for name, meaning in PRESETS.items())
        near = (
            difflib.get_close_matches(where, [*PRESETS, *self.modules], n=3, cutoff=0.5)
            if isinstance(where, str)
            else []
        )
        names = near or [
            name for name in self.modules if isinstance(self.modules[name], nn.modules.batchnorm._BatchNorm)
        ]
        like = f"names like {', '.join(map(repr, names[:3]))}" if names else "see model.named_modules()"
        return f"presets are {presets}; a glob is matched with whole names, {like}"


def run(model: nn.Module, example: Example | None) -> Dataflow:
    """Return the data flow of the model on the example.

    Raises:
        InputError: If the model does not run.
    """
    if example is None:
        try:
            example = example_input(model)
        except LookupError:
            raise InputError(
                f"{type(model).__name__} has no convolution, so there is no map for attention; if it has convolutions "
                f"of another kind, give an input: example=torch.zeros(...)"
            ) from None
    args = example if isinstance(example, tuple) else () if isinstance(example, dict) else (example,)
    kwargs = example if isinstance(example, dict) else {}
    try:
        return record(model, args, kwargs)
    except InputError:
        raise
    except Exception as error:  # a model may raise anything
        shapes = ", ".join(str(tuple(t.shape)) for t in (*args, *kwargs.values()) if isinstance(t, Tensor))
        raise InputError(
            f"{type(model).__name__} did not run on zeros of shape {shapes} ({type(error).__name__}: {error}); "
            f"give an input that it accepts: example=torch.zeros(...), a tuple or a dict of them"
        ) from error
