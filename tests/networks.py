"""Small networks of every family that attention is attached to, with BatchNorm statistics of real images."""

import copy
import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import timm
import torch
import torchvision
import yaml
from PIL import Image
from sklearn.datasets import load_sample_images
from timm.models._efficientnet_builder import decode_arch_def
from timm.models.regnet import RegNetCfg
from torch import Tensor, nn
from torchvision.models import EfficientNet, MobileNetV2, MobileNetV3, RegNet
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.efficientnet import MBConvConfig
from torchvision.models.mobilenetv3 import InvertedResidualConfig
from torchvision.models.regnet import BlockParams
from torchvision.models.resnet import BasicBlock


class Plain(nn.Module):
    """A network that no library knows: a shortcut with a projection, one without, and a convolution in groups."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv1 = nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False)
        self.conv2 = nn.Conv2d(16, 16, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(16)
        self.project = nn.Conv2d(8, 16, 1, stride=2)
        self.conv3 = nn.Conv2d(16, 16, 3, padding=1, groups=4)
        self.norm3 = nn.BatchNorm2d(16)
        self.conv4 = nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.norm2(self.conv2(torch.relu(self.conv1(x)))) + self.project(x))
        y = torch.relu(self.norm3(self.conv3(x)))
        x = x + self.conv4(y)
        return self.head(torch.relu(x).mean((2, 3)))


def _timm(name: str, **options) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, num_classes=5, **options)


def _resnext() -> nn.Module:
    block = timm.models.resnet.Bottleneck
    return timm.models.ResNet(block, (1, 1, 1, 1), num_classes=5, cardinality=4, base_width=4)


class _NarrowBlock(BasicBlock):
    """torchvision's basic block with an eighth of the channels inside."""

    def __init__(self, inplanes: int, planes: int, *args, **kwargs):
        super().__init__(inplanes, planes, *args, **kwargs)
        stride = self.conv1.stride
        self.conv1 = nn.Conv2d(inplanes, planes // 8, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes // 8)
        self.conv2 = nn.Conv2d(planes // 8, planes, 3, 1, 1, bias=False)


def _regnet() -> nn.Module:
    return RegNet(BlockParams.from_init_params(depth=3, w_0=16, w_a=16, w_m=2, group_width=8), num_classes=5)


def _mobilenet_v3() -> nn.Module:
    rows = [(8, 3, 16, 8, True, "RE", 2), (8, 3, 32, 8, True, "HS", 1), (8, 5, 32, 16, True, "HS", 2)]
    settings = [InvertedResidualConfig(*row, dilation=1, width_mult=1.0) for row in rows]
    return MobileNetV3(settings, 32, num_classes=5)


def _efficientnet() -> nn.Module:
    rows = [(1, 3, 1, 8, 8, 1), (4, 3, 2, 8, 16, 2), (4, 5, 2, 16, 24, 2)]
    return EfficientNet([MBConvConfig(*row) for row in rows], dropout=0.1, num_classes=5, last_channel=32)


def _blocks() -> list:
    return decode_arch_def([["ds_r1_k3_s1_e1_c8"], ["ir_r2_k3_s2_e4_c16_se0.25"], ["ir_r2_k5_s2_e4_c24_se0.25"]])


def _huggingface(kind: str, **options) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import transformers

        config = getattr(transformers, f"{kind}Config")(num_labels=5, **options)
        return getattr(transformers, f"{kind}ForImageClassification")(config)

    return build


# Rows of ultralytics' model format: from, repeats, module, arguments.
YOLO = {
    "nc": 3,
    "ch": 3,
    "scales": {"n": [0.33, 0.25, 1024], "s": [0.33, 0.5, 1024]},
    "scale": "n",
    "backbone": [
        [-1, 1, "Conv", [64, 3, 2]],
        [-1, 1, "Conv", [128, 3, 2]],
        [-1, 1, "C2f", [128, True]],
        [-1, 1, "Conv", [256, 3, 2]],
    ],
    "head": [[[2, 3], 1, "Detect", ["nc"]]],
}


def _yolo() -> nn.Module:
    from ultralytics.nn.tasks import DetectionModel

    return DetectionModel(copy.deepcopy(YOLO), ch=3, verbose=False)


def boxes(root: Path) -> Path:
    """Write six images with a bright square each and ultralytics' labels; return the file that names them."""
    for split in ("train", "val"):
        (root / "images" / split).mkdir(parents=True)
        (root / "labels" / split).mkdir(parents=True)
        for number in range(6):
            image = Image.new("RGB", (64, 64), (40, 40, 40))
            image.paste((250, 250, 250), (8 * number, 16, 8 * number + 16, 32))
            image.save(root / "images" / split / f"{number}.png")
            centre = (8 * number + 8) / 64
            (root / "labels" / split / f"{number}.txt").write_text(f"{number % 3} {centre} 0.375 0.25 0.25\n")
    data = {"path": str(root), "train": "images/train", "val": "images/val", "names": ["a", "b", "c"]}
    (root / "data.yaml").write_text(yaml.safe_dump(data))
    return root / "data.yaml"


_STAGES = {"hidden_sizes": [16, 24], "depths": [2, 1]}
NETWORKS = {
    "torchvision-resnet": lambda: torchvision.models.ResNet(_NarrowBlock, [2, 1, 2, 1], num_classes=5),
    "torchvision-regnet": _regnet,
    "torchvision-mobilenet_v2": lambda: MobileNetV2(5, 0.5, [[1, 16, 1, 1], [2, 16, 2, 2], [2, 32, 2, 2]]),
    "torchvision-mobilenet_v3": _mobilenet_v3,
    "torchvision-efficientnet": _efficientnet,
    "torchvision-convnext": lambda: ConvNeXt([CNBlockConfig(16, 32, 2), CNBlockConfig(32, None, 1)], num_classes=5),
    "timm-resnet": _timm("test_resnet"),
    "timm-resnext": _resnext,
    "timm-regnet": lambda: timm.models.RegNet(RegNetCfg(w0=16, wa=24.0, wm=1.5, group_size=8, depth=4), num_classes=5),
    "timm-mobilenetv3": lambda: timm.models.MobileNetV3(_blocks(), num_classes=5, stem_size=8, num_features=32),
    "timm-efficientnet": lambda: timm.models.EfficientNet(_blocks(), num_classes=5, stem_size=8, num_features=32),
    "timm-convnext": _timm("test_convnext"),
    "huggingface-resnet": _huggingface("ResNet", embedding_size=16, **_STAGES),
    "huggingface-regnet": _huggingface("RegNet", embedding_size=16, groups_width=8, **_STAGES),
    "huggingface-mobilenet_v2": _huggingface("MobileNetV2", depth_multiplier=0.35),
    "huggingface-convnext": _huggingface("ConvNext", num_stages=2, **_STAGES),
    "ultralytics-yolo": _yolo,
    "plain": Plain,
}


@functools.cache
def photographs(size: int = 64) -> Tensor:
    """Four crops of the two photographs that scikit-learn carries, standardised, in float64."""
    crops = [
        image[100 : 100 + 4 * size : 4, left : left + 4 * size : 4]
        for image in load_sample_images().images
        for left in (0, 300)
    ]
    pixels = torch.from_numpy(np.stack(crops))
    pixels = pixels.permute(0, 3, 1, 2).double().contiguous()
    return (pixels - pixels.mean((0, 2, 3), keepdim=True)) / pixels.std((0, 2, 3), keepdim=True)


def network(name: str) -> nn.Module:
    """A copy of a network in evaluation mode and float64, whose norms are no longer alike."""
    return copy.deepcopy(_calibrated(name))


@functools.cache
def _calibrated(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = NETWORKS[name]().double().train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm | nn.LayerNorm | nn.GroupNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
    for parameter_name, parameter in model.named_parameters():
        if "gamma" in parameter_name or "layer_scale" in parameter_name:  # ConvNeXt's branches start at almost nothing
            nn.init.uniform_(parameter, 0.5, 1)
    with torch.no_grad():
        for _ in range(3):
            model(photographs())
    return model.eval()


def output(model: nn.Module, images: Tensor | None = None) -> Tensor:
    """Return the output of the model as one tensor."""
    y = model(photographs() if images is None else images)
    if isinstance(y, dict) and "logits" in y:
        return y["logits"]
    if isinstance(y, tuple):  # YOLO in evaluation mode: predictions, and what they are made of
        y = y[1]
    if isinstance(y, dict):
        return torch.cat([level.flatten() for level in y["feats"]])  # boxes and scores start as their biases
    return y


def difference(y: Tensor, expected: Tensor) -> float:
    """Relative difference in the Euclidean norm."""
    return ((y - expected).norm() / expected.norm()).item()
