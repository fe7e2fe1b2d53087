"""Attention layers by name: one file per layer, each with a ``SPEC`` that is registered here."""

import importlib
import pkgutil

from .blend import Blend
from .sge import SpatialGroupEnhance
from .shuffle import ShuffleAttention
from .shuffle_ablation import ShuffleAttentionAblation
from .spec import (
    AttentionSpec,
    as_identity,
    attention_names,
    blended,
    create_attention,
    create_identity,
    fitting_groups,
    gate_names,
    get_spec,
    largest_groups,
    register_attention,
    spec_of,
)

__all__ = [
    "AttentionSpec",
    "Blend",
    "ShuffleAttention",
    "ShuffleAttentionAblation",
    "SpatialGroupEnhance",
    "as_identity",
    "attention_names",
    "blended",
    "create_attention",
    "create_identity",
    "fitting_groups",
    "gate_names",
    "get_spec",
    "largest_groups",
    "register_attention",
    "spec_of",
]

_modules = [importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
for _spec in sorted((module.SPEC for module in _modules if hasattr(module, "SPEC")), key=lambda spec: spec.arxiv):
    register_attention(_spec)
