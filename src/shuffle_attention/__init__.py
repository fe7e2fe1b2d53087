"""SA-Net: shuffle attention for deep convolutional networks.

Importing this package is cheap: PyTorch and the kernels are loaded when one of its names is first used, so that
``sanet --help`` comes at once. ``shuffle_attention.models`` registers the SA-ResNets, and those with other attention,
with timm.
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .attach import AttachReport, attach, detach
    from .attention import (
        AttentionSpec,
        ShuffleAttention,
        SpatialGroupEnhance,
        attention_names,
        create_attention,
        gate_names,
        register_attention,
    )
    from .checkpoints import load_checkpoint

    __version__: str

__all__ = [
    "AttachReport",
    "AttentionSpec",
    "ShuffleAttention",
    "SpatialGroupEnhance",
    "attach",
    "attention_names",
    "create_attention",
    "detach",
    "gate_names",
    "load_checkpoint",
    "register_attention",
]

_MODULES = {"AttachReport": "attach", "attach": "attach", "detach": "attach", "load_checkpoint": "checkpoints"}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        value = version("shuffle-attention")
    elif name in __all__:
        value = getattr(importlib.import_module(f".{_MODULES.get(name, 'attention')}", __name__), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})


class _Package(ModuleType):
    """This package, whose function ``attach`` the folder of that name does not replace when it is loaded."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in __all__ and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


class _OldPaths:
    """Ask :mod:`.attention.old_paths` for a module of this package that is not there."""

    @staticmethod
    def find_spec(fullname: str, path: Any = None, target: Any = None) -> Any:
        if not fullname.startswith(f"{__name__}."):
            return None
        from .attention.old_paths import find_spec

        return find_spec(fullname)


sys.modules[__name__].__class__ = _Package
if not any(getattr(finder, "__module__", None) == __name__ for finder in sys.meta_path):
    sys.meta_path.append(_OldPaths)
