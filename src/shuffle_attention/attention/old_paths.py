"""Import paths of version 0.1, which keep working until version 0.3: pickled layers and users' code name them."""

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
    """Return the spec of a module under its old name, or None if there was none of that name."""
    package, _, name = fullname.rpartition(".")
    return ModuleSpec(fullname, _OldPaths()) if package == ROOT and name in MOVED else None


class _OldPaths(Loader):
    """Loads a module under its old name, which looks its attributes up under the new one."""

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return ModuleType(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        new = importlib.import_module(f"{ROOT}.{MOVED[module.__name__.rpartition('.')[2]]}")
        message = f"{module.__name__} is now {new.__name__}; the old name goes with version 0.3"
        warnings.warn(message, DeprecationWarning, stacklevel=2)

        def look_up(name: str) -> Any:
            if name.startswith("__"):  # a path, above all: submodules would be imported a second time
                raise AttributeError(name)
            return getattr(new, name)

        module.__getattr__ = look_up  # pyright: ignore[reportAttributeAccessIssue]
