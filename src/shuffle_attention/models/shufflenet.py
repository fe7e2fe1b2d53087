"""torchvision's ShuffleNet v2, registered with timm under torchvision's names: ``shufflenet_v2_x1_0`` and so on.

Importing this module registers the models. State-dict keys are torchvision's, and ``pretrained=True`` loads
torchvision's weights.

Source: Ma et al., ShuffleNet V2, arXiv:1807.11164.
"""

import functools
from typing import Any

from timm.layers import create_classifier
from timm.models import build_model_with_cfg, checkpoint_seq
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import get_model_weights
from torchvision.models import shufflenetv2 as torchvisions

from .sa_resnet import DEFAULT_CFG, register

__all__ = ["ShuffleNetV2"]


class ShuffleNetV2(torchvisions.ShuffleNetV2):
    """torchvision's ShuffleNet v2 with the methods that timm expects of a model.

    Args:
        stages_repeats: Number of blocks of the three stages.
        stages_out_channels: Number of channels of the stem, the stages and the last convolution.
        num_classes: Number of classes; 0 returns the pooled features.
        in_chans: Number of input channels.
        global_pool: timm's name of the pooling before the classifier.
        drop_rate: Dropout before the classifier.
        device: Device of the parameters.
        dtype: Type of the parameters.
    """

    def __init__(
        self,
        stages_repeats: list[int],
        stages_out_channels: list[int],
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        device=None,
        dtype=None,
    ):
        super().__init__(stages_repeats, stages_out_channels)
        stem = self.conv1[0]
        assert isinstance(stem, nn.Conv2d)
        if in_chans != stem.in_channels:
            self.conv1[0] = nn.Conv2d(in_chans, stem.out_channels, 3, 2, 1, bias=False)
        self.num_features = self.head_hidden_size = stages_out_channels[-1]
        self.drop_rate = drop_rate
        self.grad_checkpointing = False
        self.feature_info = [
            {"num_chs": channels, "reduction": 2 ** (level + 1), "module": module}
            for level, (channels, module) in enumerate(
                zip(
                    [stages_out_channels[0], *stages_out_channels[:-1]],
                    ("conv1", "maxpool", "stage2", "stage3", "stage4"),
                    strict=True,
                )
            )
        ]
        self.reset_classifier(num_classes, global_pool)
        self.to(device=device, dtype=dtype)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.grad_checkpointing = enable

    def get_classifier(self) -> nn.Module:
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str = "avg") -> None:
        self.num_classes = num_classes
        weight = self.conv1[0].weight
        assert isinstance(weight, Tensor)
        self.global_pool, self.fc, *_ = create_classifier(
            self.num_features, num_classes, pool_type=global_pool, device=weight.device, dtype=weight.dtype
        )

    def forward_features(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.conv1(x))
        for stage in (self.stage2, self.stage3, self.stage4):
            x = checkpoint_seq(stage, x) if self.grad_checkpointing else stage(x)
        return self.conv5(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.global_pool(x)
        if self.drop_rate:
            x = functional.dropout(x, self.drop_rate, self.training)
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


# The number of blocks does not depend on the width, the number of channels does: Ma et al., table 5.
_BLOCKS = [4, 8, 4]
_CHANNELS = {
    "shufflenet_v2_x0_5": [24, 48, 96, 192, 1024],
    "shufflenet_v2_x1_0": [24, 116, 232, 464, 1024],
    "shufflenet_v2_x1_5": [24, 176, 352, 704, 1024],
    "shufflenet_v2_x2_0": [24, 244, 488, 976, 2048],
}


def _cfg(name: str) -> dict[str, Any]:
    weights: Any = get_model_weights(name)
    preprocessing = weights.DEFAULT.transforms()
    return {
        **DEFAULT_CFG,
        "url": weights.DEFAULT.url,
        "license": "bsd-3-clause",
        "crop_pct": preprocessing.crop_size[0] / preprocessing.resize_size[0],
        "first_conv": "conv1.0",
    }


def _create(name: str, pretrained: bool, **kwargs: Any) -> ShuffleNetV2:
    return build_model_with_cfg(
        ShuffleNetV2,
        name,
        pretrained,
        stages_repeats=_BLOCKS,
        stages_out_channels=_CHANNELS[name],
        feature_cfg={"out_indices": (0, 1, 2, 3, 4)},
        **kwargs,
    )


for _name in _CHANNELS:
    _width = _name[-3:].replace("_", ".")
    register(_name, functools.partial(_create, _name), f"ShuffleNet v2 of width {_width}.", _cfg(_name))
