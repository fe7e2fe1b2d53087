"""Object detection and instance segmentation: torchvision's detectors over any of timm's backbones.

Reading and measuring COCO data needs ``pip install shuffle-attention[detection]``.
"""

from .detectors import ARCHITECTURES, create_detector

__all__ = ["ARCHITECTURES", "create_detector"]
