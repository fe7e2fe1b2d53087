"""Rewrite models for inference, and write them as files that run without this package, each checked by its runtime.

A format is one file of this folder with a ``FORMAT``, or a :class:`Format` given to :func:`register_format`.
"""

from .api import export, find_format, format_names, register_format
from .format import Format
from .rewrite import RewriteReport, rewrite

__all__ = ["Format", "RewriteReport", "export", "find_format", "format_names", "register_format", "rewrite"]
