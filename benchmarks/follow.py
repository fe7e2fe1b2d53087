"""Whether a network with fused blocks trains as the one run module by module: ``python benchmarks/follow.py``.

SA-ResNet-18 on scikit-learn's digits at 32 pixels, 200 steps of SGD from the same seed, on one thread. Beside the
largest difference of the losses stands that of a control: the modules against themselves with an input changed in its
last digit. Training amplifies rounding, and two orders of summation cannot be closer than that.
"""

import argparse
from itertools import product

import timm
import torch
from sklearn.datasets import load_digits
from timing import judged, write
from torch import Tensor, nn

from shuffle_attention.models import fused_block

can_fuse = fused_block.can_fuse
TARGET = 1e-9  # in float64
RATES = (0.01, 0.05)
TYPES = {"float64": torch.float64, "float32": torch.float32}


def losses(dtype: torch.dtype, lr: float, steps: int, *, fused: bool, nudge: float = 0.0) -> Tensor:
    """Return the loss of every step, with the input scaled by ``1 + nudge``."""
    fused_block.can_fuse = can_fuse if fused else lambda *_: False
    torch.manual_seed(0)
    network = timm.create_model("sa_resnet18", num_classes=10).to(dtype).train()
    optimizer = torch.optim.SGD(network.parameters(), lr, momentum=0.9)
    pixels, labels = load_digits(return_X_y=True)
    images = torch.tensor(pixels).view(-1, 1, 8, 8) / 8 - 1
    images = nn.functional.interpolate(images, size=32).expand(-1, 3, -1, -1)
    images, labels = (images * (1 + nudge)).to(dtype), torch.tensor(labels)
    order = torch.randint(len(images), (steps, 16), generator=torch.Generator().manual_seed(1))
    found = []
    for chosen in order:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network(images[chosen]), labels[chosen])
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    fused_block.can_fuse = can_fuse
    return torch.tensor(found, dtype=torch.float64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rates", type=float, nargs="+", default=RATES)
    parser.add_argument("--name", help="write results/NAME.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    print("largest difference of the losses to those of the modules one by one")
    for (name, dtype), lr in product(TYPES.items(), args.rates):
        modules = losses(dtype, lr, args.steps, fused=False)
        fused = losses(dtype, lr, args.steps, fused=True)
        nudged = losses(dtype, lr, args.steps, fused=False, nudge=2 * torch.finfo(dtype).eps)
        row = {"type": name, "lr": lr, "steps": args.steps, "first_loss": modules[0].item()}
        row |= {"last_loss": modules[-1].item(), "fused": (fused - modules).abs().max().item()}
        row |= {"control": (nudged - modules).abs().max().item(), "target": TARGET if name == "float64" else None}
        figures = f"fused {row['fused']:.1e} {judged(row['fused'], row['target'])}  control {row['control']:.1e}"
        print(f"{name}  lr {lr:<5g} {figures}", flush=True)
        rows.append(row)
    if args.name:
        write(args.name, rows)


if __name__ == "__main__":
    main()
