"""The networks that a comparison is of: attentions in a ResNet, models by name, or attention put into a trained one."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...attention import get_spec, register_attention
from ...attention.spec import Attention
from ...errors import InputError
from ...models.attention_resnet import resnet_with
from ..recipes.recipe import Recipe


@dataclass(frozen=True)
class Variant:
    """One of the networks that are compared.

    Attributes:
        name: What it is called in tables, and its folder.
        model: timm's name of it.
        model_args: What to create it with, before what the recipe says.
        attach: Attention put into it.
    """

    name: str
    model: str
    model_args: dict[str, Any]
    attach: dict[str, Any] = field(default_factory=dict)

    def recipe(self, base: Recipe, seed: int) -> Recipe:
        """Returns the recipe of the run with a seed."""
        own = {"attach": self.attach} if self.attach else {}
        return base.replaced(model=self.model, model_args=self.model_args | base.model_args, seed=seed, **own)


def variants_of(attentions: Sequence[Attention], depth: int, models: Sequence[str]) -> list[Variant]:
    """Returns ResNets with attentions of the family, or models of timm by their names.

    Raises:
        InputError: If both or neither are given, one is named twice, or there is no such attention or depth.
    """
    if bool(attentions) == bool(models):
        raise InputError("give what to compare: --attention none,se,shuffle with --depth, or --models resnet18,...")
    names = [_registered(attention) for attention in attentions] or list(models)
    if len(names) < 2:
        raise InputError(f"a comparison needs two or more, the first as the baseline; got {', '.join(names)}")
    if len(set(names)) < len(names):
        raise InputError(f"each can be compared once, got {', '.join(names)}")
    if attentions:
        return [Variant(name, *resnet_with(name, depth)) for name in names]
    for name in names:
        if Path(name).name != name:
            raise InputError(f"the name of a model names its folder as well, which {name!r} cannot")
    return [Variant(name, name, {}) for name in names]


def attached_variants(attentions: Sequence[Attention], plain: Recipe, where: str, preserve: str) -> list[Variant]:
    """Returns the network of a recipe with attention attached, with or without its function preserved, or both.

    Args:
        attentions: Names of the family; ``none`` is the network as it is.
        plain: Recipe that the network was trained with.
        where: Where the attention goes, as :func:`attach` takes it.
        preserve: ``yes``, ``no`` or ``both``.

    Raises:
        InputError: If there is no such attention, the network has some already, or fewer than two variants come of it.
    """
    if plain.attach:
        raise InputError(f"the network has attention attached already ({plain.attach}); start from a plain one")
    names = [_registered(attention) for attention in attentions]
    found = []
    for name in names:
        if name == "none":
            found.append(Variant(name, plain.model, plain.model_args))
            continue
        for keep in {"yes": [True], "no": [False], "both": [True, False]}[preserve]:
            options: dict[str, Any] = {"name": name, "where": where, "preserve": keep}
            if get_spec(name).group_parts is not None:
                options["groups"] = "auto"
            label = f"{name}-{'preserved' if keep else 'unpreserved'}"
            found.append(Variant(label, plain.model, plain.model_args, options))
    if len(found) < 2 or len({v.name for v in found}) < len(found):
        raise InputError(f"a comparison needs two or more, each once; --attention gave {', '.join(names) or 'nothing'}")
    return found


def _registered(attention: Attention) -> str:
    """Return the name of an attention. A callable is registered, since recipes contain names."""
    return register_attention(get_spec(attention)).name
