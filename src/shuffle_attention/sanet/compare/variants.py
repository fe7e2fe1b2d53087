"""The models of a comparison: what is compared, by name."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ...attention import get_spec, register_attention
from ...attention.spec import Attention
from ...errors import InputError
from ...models.attention_resnet import resnet_with


@dataclass(frozen=True)
class Variant:
    """One of the models compared.

    Attributes:
        name: Name in tables, and of its folder.
        model: Name of the model in timm.
        model_args: Arguments to create it with; those of the recipe come on top.
        attach: Attention attached to it: arguments of :func:`attach`.
        own_args: Arguments that come on top of those of the recipe.
        twin: For a null, the name of the variant that has the same distribution; empty for all others.
        redrawn: Whether initial weights are drawn with another seed than everything else of a run.
        cost: For a control, ``like``, the name of the variant whose cost it has, and ``step``, the times of training
            steps over that of the baseline: by name of a variant, the median and the quartiles.
    """

    name: str
    model: str
    model_args: dict[str, Any]
    attach: dict[str, Any] = field(default_factory=dict)
    own_args: dict[str, Any] = field(default_factory=dict)
    twin: str = ""
    redrawn: bool = False
    cost: dict[str, Any] = field(default_factory=dict)

    def recipe(self, base: Any, seed: int) -> Any:
        """Return the recipe of the run with a seed."""
        name, arguments = base.network
        own: dict[str, Any] = {name: self.model, "seed": seed}
        if self.attach:
            own["attach"] = self.attach
        if self.model_args or self.own_args:
            own[arguments] = self.model_args | base.network_args | self.own_args
        if self.redrawn:
            own["init_seed"] = ((base.init_seed or seed) + 2**31) % 2**32
        return base.replaced(**own)

    def to_list(self) -> list[Any]:
        """Return all but the name as plain values: model, its arguments, attention, and fields that are not empty."""
        further = {name: getattr(self, name) for name in FURTHER if getattr(self, name)}
        return [self.model, self.model_args, self.attach, *([further] if further else [])]


FURTHER = ("own_args", "twin", "redrawn", "cost")


def null_of(variants: Sequence[Variant], base: Any) -> Variant:
    """Return a variant that has the same distribution as another one, so that it differs from it by chance alone.

    Of the first SA-ResNet this is the same network without the shuffle (docs/shuffle.md has the proof); without one, it
    is the baseline with initial weights from another seed, on the same images in the same order.

    Raises:
        InputError: If the models do not start from random weights.
    """
    recipe = variants[0].recipe(base, 0)
    if recipe.starts_trained:
        raise InputError(
            "--null needs models that start from random weights: those of trained models are in an order of channels "
            "that a shuffle destroys"
        )
    for variant in variants:
        if variant.model.startswith("sa_resnet") and not recipe.attach:
            options = (variant.model_args | base.network_args).get("attention_options") or {}
            other = {**options, "shuffle": not options.get("shuffle", True)}
            return replace(
                variant, name=f"{variant.name}-null", own_args={"attention_options": other}, twin=variant.name
            )
    return replace(variants[0], name=f"{variants[0].name}-null", twin=variants[0].name, redrawn=True)


def variants_of(attentions: Sequence[Attention], depth: int, models: Sequence[str]) -> list[Variant]:
    """Return ResNets with these attentions, or models of timm by their names.

    Raises:
        InputError: If both or neither are given, a name is repeated, or there is no such attention or depth.
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
            raise InputError(f"a model's name is also the name of its folder, which {name!r} cannot be")
    return [Variant(name, name, {}) for name in names]


def attached_variants(attentions: Sequence[Attention], plain: Any, where: str, preserve: str) -> list[Variant]:
    """Return the model of a recipe with attentions attached, preserving its function, not preserving it, or both.

    The attention ``none`` leaves the model as it is.

    Raises:
        InputError: If there is no such attention, the model has one already, or there are fewer than two variants.
    """
    if plain.attach:
        raise InputError(f"the model has attention attached already ({plain.attach}); start from a plain one")
    names = [_registered(attention) for attention in attentions]
    model, arguments, variants = getattr(plain, plain.network[0]), plain.network_args, []
    for name in names:
        if name == "none":
            variants.append(Variant(name, model, arguments))
            continue
        for keep in {"yes": [True], "no": [False], "both": [True, False]}[preserve]:
            options: dict[str, Any] = {"name": name, "where": where, "preserve": keep}
            if get_spec(name).group_parts is not None:
                options["groups"] = "auto"
            label = f"{name}-{'preserved' if keep else 'unpreserved'}"
            variants.append(Variant(label, model, arguments, options))
    if len(variants) < 2 or len({v.name for v in variants}) < len(variants):
        raise InputError(f"a comparison needs two or more, each once; --attention gave {', '.join(names) or 'nothing'}")
    return variants


def _registered(attention: Attention) -> str:
    """Return the name of an attention. A callable is registered, since recipes contain names."""
    return register_attention(get_spec(attention)).name
