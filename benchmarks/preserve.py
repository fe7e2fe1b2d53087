"""Measure how attaching attention changes a model's outputs: ``python benchmarks/preserve.py --data imagenette2/val``.

For each model: the relative difference (Euclidean norm over all logits) between the outputs before and after
``attach(model, "shuffle", where="residual")``, with the start as the identity and with the published start, and the
share of images whose highest logit stays the same. ``rounding_float32`` is the difference between single and double
precision before anything is attached, so that the effect of rounding alone is known.

The models have random weights, random affine parameters of norms, and BatchNorm statistics of the images, because
trained weights would have to be downloaded. The statistics are taken from other images than the differences.
"""

import argparse
import copy
from pathlib import Path
from typing import Literal

import timm
import torch
import torchvision
from timing import write
from torch import Tensor, nn
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from shuffle_attention import attach

NETWORKS = {
    "torchvision resnet50": lambda: torchvision.models.resnet50(),
    "torchvision regnet_y_400mf": lambda: torchvision.models.regnet_y_400mf(),
    "torchvision mobilenet_v3_large": lambda: torchvision.models.mobilenet_v3_large(),
    "torchvision convnext_tiny": lambda: torchvision.models.convnext_tiny(),
    "timm resnet18": lambda: timm.create_model("resnet18"),
    "timm resnext50_32x4d": lambda: timm.create_model("resnext50_32x4d"),
    "timm regnetx_002": lambda: timm.create_model("regnetx_002"),
    "timm mobilenetv3_small_050": lambda: timm.create_model("mobilenetv3_small_050"),
    "timm efficientnet_b0": lambda: timm.create_model("efficientnet_b0"),
}


def images(folder: Path, count: int, size: int) -> Tensor:
    """Return centre crops with equally many images of each class, standardised."""
    transform = v2.Compose(
        [v2.Resize(size), v2.CenterCrop(size), v2.PILToTensor(), v2.ToDtype(torch.float64, scale=True)]
    )
    data = ImageFolder(folder, transform)
    chosen = torch.stack([data[index][0] for index in range(0, len(data), len(data) // count)][:count])
    return (chosen - chosen.mean((0, 2, 3), keepdim=True)) / chosen.std((0, 2, 3), keepdim=True)


def with_statistics(model: nn.Module, seen: Tensor) -> nn.Module:
    model.double().train()
    for name, parameter in model.named_parameters():
        if "gamma" in name or "layer_scale" in name:  # initialised to 1e-6 in ConvNeXt
            nn.init.uniform_(parameter, 0.5, 1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # mean over all batches
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
    with torch.no_grad():
        for batch in seen.split(8):
            model(batch)
    return model.eval()


def difference(y: Tensor, expected: Tensor) -> float:
    return ((y.double() - expected.double()).norm() / expected.double().norm()).item()


@torch.no_grad()
def rounding(model: nn.Module, probe: Tensor) -> float:
    return difference(copy.deepcopy(model).float()(probe.float()), model(probe))


@torch.no_grad()
def change(
    model: nn.Module, probe: Tensor, dtype: torch.dtype, start: Literal["identity", "published"]
) -> tuple[float, float]:
    model, probe = copy.deepcopy(model).to(dtype), probe.to(dtype)
    before = model(probe)
    attach(model, "shuffle", where="residual", start=start)
    after = model(probe)
    same = (before.argmax(1) == after.argmax(1)).double().mean().item()
    return difference(after, before), same


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with one folder of images per class")
    parser.add_argument(
        "--images", type=int, default=32, help="number of images; half for the statistics, half for the differences"
    )
    parser.add_argument("--size", type=int, default=128)
    options = parser.parse_args()
    chosen = images(options.data, options.images, options.size)
    seen, probe = chosen[::2], chosen[1::2]
    rows: list[dict[str, object]] = []
    for name, build in NETWORKS.items():
        torch.manual_seed(0)
        model = with_statistics(build(), seen)
        row: dict[str, object] = {"network": name, "images": len(probe), "size": options.size}
        row["rounding_float32"] = rounding(model, probe)
        for dtype in (torch.float32, torch.float64):
            row[f"identity_{str(dtype)[6:]}"], row["same_top1_identity"] = change(model, probe, dtype, "identity")
        row["published"], row["same_top1_published"] = change(model, probe, torch.float64, "published")
        rows.append(row)
        print(row, flush=True)
    print(write("preserve", rows))


if __name__ == "__main__":
    main()
