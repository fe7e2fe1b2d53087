"""Models with attention. Importing this package registers them with timm: ``timm.create_model("sa_resnet50")``.

Import the detectors and the YOLO row where you use them: :mod:`.detectors`, :mod:`.yolo`.
"""

from typing import Any

from . import attention_resnet, shufflenet  # noqa: F401 - both register their models
from .attention_resnet import AttentionResNet, resnet_with
from .branch import set_memory
from .sa_resnet import SABasicBlock, SABottleneck, SAResNet, small_input_stem

__all__ = [
    "AttentionResNet",
    "SABasicBlock",
    "SABottleneck",
    "SAResNet",
    "resnet_with",
    "set_memory",
    "small_input_stem",
]


def __getattr__(name: str) -> Any:
    """Return the function that creates an SA-ResNet, such as ``sa_resnet50``."""
    if name.startswith("sa_resnet"):
        from . import sa_resnet

        return getattr(sa_resnet, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
