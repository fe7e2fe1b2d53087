"""Import paths of version 0.1, which pickled layers and users' code name; they work until version 0.3."""

import importlib
import warnings
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

ROOT = "shuffle_attention"
MOVED = {
    "layers": "attention",
    "ablation": "attention",
    "ops": "kernels",
    "families": "models.attention_resnet",
    "shufflenet": "models.shufflenet",
    "fusing": "models.fused_block",
    "yolo": "models.yolo",
    "surgery": "attach",
    "detection": "models.detectors",
    "network": "sanet.network",
    "cli": "sanet.cli",
}


def find_spec(fullname: str) -> ModuleSpec | None:
    """Return the import spec of a module under its old name, or None if version 0.1 had no such module."""
    package, _, name = fullname.rpartition(".")
    return ModuleSpec(fullname, _OldPaths()) if package == ROOT and name in MOVED else None


class _OldPaths(Loader):
    """Loader of a module under its old name that looks up its attributes under the new name."""

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return ModuleType(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        new = importlib.import_module(f"{ROOT}.{MOVED[module.__name__.rpartition('.')[2]]}")
        message = f"{module.__name__} is now {new.__name__}; the old name goes with version 0.3"
        warnings.warn(message, DeprecationWarning, stacklevel=2)

        def look_up(name: str) -> Any:
            if name.startswith("__"):  # above all __path__, through which submodules would be imported twice
                raise AttributeError(name)
            return getattr(new, name)

        module.__getattr__ = look_up  # pyright: ignore[reportAttributeAccessIssue]
