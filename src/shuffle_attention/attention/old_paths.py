"""Import paths of version 0.1, which pickled layers and users' code name; they work until version 0.3."""

import importlib
import sys
import warnings
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from ..errors import InputError

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
    """Return the import spec of a module under its old name, or None if version 0.1 had no such module.

    Raises:
        InputError: If only pickled models name the module, and they cannot be loaded.
    """
    package, _, name = fullname.rpartition(".")
    if package == f"{ROOT}.surgery":
        raise InputError(
            "the file pickles a model to which version 0.1 attached attention, in a way that this version does not "
            "have. With version 0.1, load it and save its weights: torch.save(model.state_dict(), path). Here, create "
            "the model, attach the same attention, and load them: shuffle_attention.load_checkpoint(model, path)"
        )
    return (
        ModuleSpec(fullname, _OldPaths(), is_package=name == "surgery") if package == ROOT and name in MOVED else None
    )


class _OldPaths(Loader):
    """Loader of a module under its old name that looks up its attributes under the new name."""

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return ModuleType(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        if "ultralytics.nn.tasks" in sys.modules:  # a pickled YOLO, whose rows ultralytics is to know
            importlib.import_module(f"{ROOT}.models.yolo")
        new = importlib.import_module(f"{ROOT}.{MOVED[module.__name__.rpartition('.')[2]]}")
        message = f"{module.__name__} is now {new.__name__}; the old name goes with version 0.3"
        warnings.warn(message, DeprecationWarning, stacklevel=2)

        def look_up(name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            return getattr(new, name)

        module.__getattr__ = look_up  # pyright: ignore[reportAttributeAccessIssue]
