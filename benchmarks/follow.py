"""Compare the training of fused blocks with that of their modules one by one: ``python benchmarks/follow.py``.

SA-ResNet-18 on scikit-learn's digits at 32 pixels, 100 steps of SGD from the same seed, on one thread. Beside the
largest difference of the losses stands that of a control: the modules against themselves with an input changed in its
last digit. Training amplifies rounding, and two orders of summation cannot be closer than that.
"""

from itertools import product

import timm
import torch
from network import by_modules
from sklearn.datasets import load_digits
from timing import judged, options, write
from torch import Tensor, nn

TARGET = 1e-9  # in float64
RATES = (0.01, 0.05)
TYPES = {"float64": torch.float64, "float32": torch.float32}


def losses(dtype: torch.dtype, lr: float, steps: int, *, fused: bool, nudge: float = 0.0) -> Tensor:
    """Return the loss of every step, with the input scaled by ``1 + nudge``."""
    torch.manual_seed(0)
    network = timm.create_model("sa_resnet18", num_classes=10).to(dtype).train()
    if not fused:
        by_modules(network)
    optimizer = torch.optim.SGD(network.parameters(), lr, momentum=0.9)
    pixels, labels = load_digits(return_X_y=True)
    images = torch.tensor(pixels).view(-1, 1, 8, 8) / 8 - 1
    images = nn.functional.interpolate(images, size=32).expand(-1, 3, -1, -1)
    images, labels = (images * (1 + nudge)).to(dtype), torch.tensor(labels)
    order = torch.randint(len(images), (steps, 16), generator=torch.Generator().manual_seed(1))
    values = []
    for chosen in order:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network(images[chosen]), labels[chosen])
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    return torch.tensor(values, dtype=torch.float64)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rates", type=float, nargs="+", default=RATES)
    parser.set_defaults(threads=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
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
