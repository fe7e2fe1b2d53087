"""Object detection and instance segmentation: torchvision's detectors over any of timm's backbones.

Reading and measuring COCO data needs ``pip install shuffle-attention[detection]``.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ....models.detectors import ARCHITECTURES, create_detector

__all__ = ["ARCHITECTURES", "create_detector"]


def __getattr__(name: str) -> Any:
    # The settings of a run can be read without torchvision, which takes a second to load.
    if name in __all__:
        from ....models import detectors

        return getattr(detectors, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
