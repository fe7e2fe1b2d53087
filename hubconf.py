"""Entry points of ``torch.hub.load``: the models that this package registers, such as ``sa_resnet50``."""

import sys
from pathlib import Path

import timm

sys.path.insert(0, str(Path(__file__).parent / "src"))
import shuffle_attention.models

dependencies = ["torch", "timm"]
models = shuffle_attention.models
for module in (models.sa_resnet, models.attention_resnet, models.shufflenet):
    globals().update({name: timm.model_entrypoint(name) for name in module.default_cfgs})
