"""Time the end of a residual block with attention beside the same without: ``python benchmarks/tail.py``.

The baseline is the plain end of timm's block in training, ``y = bn(u); y += shortcut; relu_(y)``, by
PyTorch's own operations; forward alone keeps nothing for a backward, and ``evaluation`` is the forward
on running statistics. Beside it stands the same with the
attention module in between: what a block is without the fused op.
"""

import argparse
import itertools

import torch
from layer import FORMATS, STAGES
from timing import Times, interleaved, judged, write
from torch import Tensor, nn

from shuffle_attention import ShuffleAttention
from shuffle_attention.models.fused_block import block_tail

FORWARD_TARGET, BOTH_WAYS_TARGET = 0.7, 0.8


def plain(u: Tensor, shortcut: Tensor, norm: nn.BatchNorm2d, _: ShuffleAttention) -> Tensor:
    y = norm(u)
    y += shortcut
    return y.relu_()


def by_modules(u: Tensor, shortcut: Tensor, norm: nn.BatchNorm2d, attention: ShuffleAttention) -> Tensor:
    y = attention(norm(u))
    y += shortcut
    return y.relu_()


def random_modules(channels: int) -> tuple[nn.BatchNorm2d, ShuffleAttention]:
    norm, attention = nn.BatchNorm2d(channels), ShuffleAttention(channels)
    with torch.no_grad():
        for parameter in [*norm.parameters(), *attention.parameters()]:
            parameter.normal_()
    return norm, attention


def both_ways(function, u: Tensor, shortcut: Tensor, grad: Tensor, norm, attention) -> tuple[Tensor, ...]:
    parameters = list(norm.parameters())
    if function is not plain:
        parameters += attention.parameters()
    return torch.autograd.grad(function(u, shortcut, norm, attention), [u, shortcut, *parameters], grad)


def check(u: Tensor, shortcut: Tensor, grad: Tensor, norm, attention) -> None:
    """Check that the op and the modules agree before anything is timed."""
    maps = [t.double().requires_grad_() for t in (u, shortcut)]
    expected = both_ways(by_modules, *maps, grad.double(), norm.double(), attention.double())
    norm, attention = norm.float(), attention.float()
    got = both_ways(block_tail, u.clone().requires_grad_(), shortcut.clone().requires_grad_(), grad, norm, attention)
    for g, w in zip(got, expected, strict=True):
        # A value at ReLU's kink, to rounding, may fall on either side of it.
        assert (g - w).norm() <= 1e-3 * w.norm(), "the fused gradients are not those of the modules"
    fused, unfused = (f(u, shortcut, norm, attention) for f in (block_tail, by_modules))
    torch.testing.assert_close(fused, unfused, rtol=1e-4, atol=1e-4)


def measure(batch: int, channels: int, size: int, layout: str, repetitions: int) -> dict:
    torch.manual_seed(0)
    modules = random_modules(channels)
    maps = [torch.randn(batch, channels, size, size).to(memory_format=FORMATS[layout]) for _ in range(3)]
    check(*(t[:2] for t in maps), *modules)
    u, shortcut, grad = maps
    leaves = u.clone().requires_grad_(), shortcut.clone().requires_grad_()

    def forward(function):
        def run():
            with torch.no_grad():
                return function(u, shortcut, *modules)

        return run

    def evaluation(function):
        timed = forward(function)

        def run():
            modules[0].eval()
            timed()
            modules[0].train()

        return run

    def backward(function):
        return lambda: both_ways(function, *leaves, grad, *modules)

    times = interleaved(
        {
            f"{name}_{way}": timed(function)
            for way, timed in (("evaluation", evaluation), ("forward", forward), ("both_ways", backward))
            for name, function in (("plain", plain), ("fused", block_tail), ("modules", by_modules))
        },
        repetitions,
    )
    row = {"batch": batch, "channels": channels, "size": size, "layout": layout, "dtype": "float32"}
    for way in ("evaluation", "forward", "both_ways"):
        row[f"plain_{way}_us"] = round(times[f"plain_{way}"].median * 1e6, 1)
        for name in ("fused", "modules"):
            row[f"{name}_{way}_over_plain"] = _rounded(times, f"{name}_{way}", f"plain_{way}")
    return row | {"forward_target": FORWARD_TARGET, "both_ways_target": BOTH_WAYS_TARGET}


def _rounded(times: dict[str, Times], name: str, baseline: str) -> list[float]:
    return [round(ratio, 2) for ratio in times[name].over(times[baseline])]


def line(row: dict) -> str:
    """Return a row as printed: medians [quartiles], and whether a target is met."""
    text = f"{row['layout']:13} {row['batch']:2} x {row['channels']:4} x {row['size']:2}^2"
    for way, label in (("evaluation", "evaluation"), ("forward", "forward"), ("both_ways", "both ways")):
        middle, low, high = row[f"fused_{way}_over_plain"]
        verdict = judged(middle, row.get(f"{way}_target"))
        text += f"  {label} {row[f'plain_{way}_us']:8.1f} us x {middle:4.2f} [{low:.2f}, {high:.2f}] {verdict}"
        text += f" (modules {row[f'modules_{way}_over_plain'][0]:.2f})"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=21)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--layouts", nargs="+", default=list(FORMATS), choices=list(FORMATS))
    parser.add_argument("--name", help="write results/NAME.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    rows = []
    print("the plain end of a block in microseconds, and ratios to it: median [quartiles]")
    for layout, batch, (channels, size) in itertools.product(args.layouts, args.batches, STAGES):
        rows.append(measure(batch, channels, size, layout, args.repetitions))
        print(line(rows[-1]), flush=True)
    if args.name:
        print(write(args.name, rows))


if __name__ == "__main__":
    main()
