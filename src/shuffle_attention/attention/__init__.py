"""Attention layers by name: one file per layer, each with a ``SPEC`` that is registered here."""

import importlib
import pkgutil

from .sge import SpatialGroupEnhance
from .shuffle import ShuffleAttention
from .shuffle_ablation import ShuffleAttentionAblation
from .spec import (
    AttentionSpec,
    attention_names,
    create_attention,
    create_identity,
    fitting_groups,
    gate_names,
    get_spec,
    largest_groups,
    register_attention,
)

__all__ = [
    "AttentionSpec",
    "ShuffleAttention",
    "ShuffleAttentionAblation",
    "SpatialGroupEnhance",
    "attention_names",
    "create_attention",
    "create_identity",
    "fitting_groups",
    "gate_names",
    "get_spec",
    "largest_groups",
    "register_attention",
]

_modules = [importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
for _spec in sorted((module.SPEC for module in _modules if hasattr(module, "SPEC")), key=lambda spec: spec.arxiv):
    register_attention(_spec)
