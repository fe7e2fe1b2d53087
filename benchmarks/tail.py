"""Time the end of a residual block with attention beside the same without: ``python benchmarks/tail.py``.

The baseline is the plain end of timm's block in training, ``y = bn(u); y += shortcut; relu_(y)``, by
PyTorch's own operations; forward alone keeps nothing for a backward, and ``evaluation`` is the forward
on running statistics. Beside it stands the same with the attention module in between: what a block is
without the fused op.
"""

import itertools
from collections.abc import Callable

import torch
from timing import FORMATS, STAGES, line, measure, options, write
from torch import Tensor, nn

from shuffle_attention import ShuffleAttention
from shuffle_attention.models.fused_block import block_tail

WAYS = ("evaluation", "forward", "both ways")
TARGETS = {"fused forward": 0.7, "fused both ways": 0.8}


def plain(u: Tensor, shortcut: Tensor, norm: nn.BatchNorm2d, _: ShuffleAttention) -> Tensor:
    y = norm(u)
    y += shortcut
    return y.relu_()


def by_modules(u: Tensor, shortcut: Tensor, norm: nn.BatchNorm2d, attention: ShuffleAttention) -> Tensor:
    y = attention(norm(u))
    y += shortcut
    return y.relu_()


def random_modules(channels: int) -> tuple[nn.BatchNorm2d, ShuffleAttention]:
    norm, attention = nn.BatchNorm2d(channels), ShuffleAttention(channels, groups=min(64, channels // 2))
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


def tail_calls(batch: int, channels: int, size: int, layout: str) -> dict[str, Callable[[], object]]:
    """Return what is timed: the plain end, the fused op and the modules, in each of ``WAYS``."""
    torch.manual_seed(0)
    modules = norm, _ = random_modules(channels)
    maps = [torch.randn(batch, channels, size, size).to(memory_format=FORMATS[layout]) for _ in range(3)]
    check(*(t[:2] for t in maps), *modules)
    u, shortcut, grad = maps
    leaves = u.clone().requires_grad_(), shortcut.clone().requires_grad_()
    calls: dict[str, Callable[[], object]] = {}
    for name, function in (("plain", plain), ("fused", block_tail), ("modules", by_modules)):

        @torch.no_grad()
        def forward(training: bool = True, function=function) -> None:
            norm.training = training
            function(u, shortcut, *modules)
            norm.training = True

        calls[f"{name} evaluation"] = lambda forward=forward: forward(training=False)
        calls[f"{name} forward"] = forward
        calls[f"{name} both ways"] = lambda function=function: both_ways(function, *leaves, grad, *modules)
    return calls


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--repetitions", type=int, default=11)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--layouts", nargs="+", default=list(FORMATS), choices=list(FORMATS))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    rows = []
    print("the plain end of a block in microseconds, and ratios to it: median [quartiles]")
    for layout, batch, (channels, size) in itertools.product(args.layouts, args.batches, STAGES):
        about = {"layout": layout, "batch": batch, "channels": channels, "size": size, "dtype": "float32"}
        calls = tail_calls(batch, channels, size, layout)
        rows.append(measure(about, calls, lambda name: f"plain {name.split(' ', 1)[1]}", args.repetitions, TARGETS))
        print(line(rows[-1]), flush=True)
    if args.name:
        print(write(args.name, rows))


if __name__ == "__main__":
    main()
