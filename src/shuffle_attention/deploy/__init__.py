"""Write models as files that run without this package, each checked by its own runtime before it is kept.

A format is one file of this folder with a ``FORMAT``, or a :class:`Format` given to :func:`register_format`.
"""

from .api import export, find_format, format_names, register_format
from .format import Format

__all__ = ["Format", "export", "find_format", "format_names", "register_format"]
