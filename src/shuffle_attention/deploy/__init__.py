"""Rewrite models for inference, and write them as files that run without this package, each checked by its runtime.

A format is one file of this folder with a ``FORMAT``, or a :class:`Format` given to :func:`register_format`.
"""

from .api import export, find_format, format_names, is_deployed, load, register_format
from .constant_gates import ConstantGatesReport, drop_constant_gates
from .format import Artefact, Comparison, Format
from .quantise import quantise
from .rewrite import RewriteReport, rewrite

__all__ = [
    "Artefact",
    "Comparison",
    "ConstantGatesReport",
    "Format",
    "RewriteReport",
    "drop_constant_gates",
    "export",
    "find_format",
    "format_names",
    "is_deployed",
    "load",
    "quantise",
    "register_format",
    "rewrite",
]
