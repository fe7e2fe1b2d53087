"""Networks with attention. Importing this package registers them with timm: ``timm.create_model("sa_resnet50")``.

The detectors and the YOLO row are imported where they are used: :mod:`.detectors`, :mod:`.yolo`.
"""

from . import attention_resnet, shufflenet  # noqa: F401 - both register their networks
from .attention_resnet import AttentionResNet, resnet_with
from .sa_resnet import SABasicBlock, SABottleneck, SAResNet, small_input_stem

__all__ = ["AttentionResNet", "SABasicBlock", "SABottleneck", "SAResNet", "resnet_with", "small_input_stem"]
