"""Measure the fixed cost of one call, on a map small enough to show it: ``python benchmarks/call.py``.

The kernel's time is proportional to the number of channels, since planes are independent; everything else
(Python, the dispatcher, autograd, allocation, waking threads) is paid once per call. A line
through the times of one image of a quarter, a half, three quarters and all of 2048 x 7 x 7, which fit
in the second cache with their outputs, has the first as its slope and the second where it meets zero.
"""

import statistics
from collections.abc import Callable

import torch
from layer import layer_with_random_gates
from timing import FORMATS, interleaved, judged, options, write
from torch import Tensor

from shuffle_attention import ShuffleAttention

CHANNELS, SIZE, PARTS = 2048, 7, (0.25, 0.5, 0.75, 1.0)
TARGET = 25.0  # microseconds


def op_of(layer: ShuffleAttention) -> Callable[[Tensor], Tensor]:
    """Return the registered op with the layer's parameters, without the module around it."""
    gates = [p.detach() for p in (layer.cweight, layer.cbias, layer.sweight, layer.sbias)]
    norm = [layer.gn.weight.detach(), layer.gn.bias.detach()]
    return lambda x: torch.ops.shuffle_attention.shuffle_attention(x, *gates, *norm, layer.gn.eps, True)


def measure_calls(layout: str, repetitions: int) -> list[dict]:
    torch.manual_seed(0)
    functions = {}
    for part in PARTS:
        channels = round(CHANNELS * part)
        layer = layer_with_random_gates(channels)
        x = torch.randn(1, channels, SIZE, SIZE).to(memory_format=FORMATS[layout])
        leaf = x.clone().requires_grad_()
        for name, function in (("clone", Tensor.clone), ("op", op_of(layer)), ("module", layer)):
            functions[name, part] = torch.no_grad()(lambda function=function, x=x: function(x))
        functions["module, training", part] = lambda layer=layer, leaf=leaf: layer(leaf)
    times = interleaved(functions, repetitions)
    rows = []
    for name in ("clone", "op", "module", "module, training"):
        # A line for each repetition: what disturbs the machine then is the same for its points.
        lines = [
            statistics.linear_regression(PARTS, [times[name, part].seconds[r] * 1e6 for part in PARTS])
            for r in range(repetitions)
        ]
        low, middle, high = statistics.quantiles([fit.intercept for fit in lines], n=4)
        row = {"call": name, "layout": layout, "one_image_us": round(times[name, 1.0].median * 1e6, 1)}
        row["kernel_us"] = round(statistics.median(fit.slope for fit in lines), 1)
        row["a_call_us"] = [round(us, 1) for us in (middle, low, high)]
        rows.append(row if name == "clone" else row | {"target": TARGET})
    return rows


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--repetitions", type=int, default=41)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = []
    print(f"one image of {CHANNELS} x {SIZE} x {SIZE}; of this, what the kernel and what the call takes [quartiles]")
    for layout in FORMATS:
        for row in measure_calls(layout, args.repetitions):
            rows.append(row)
            middle, low, high = row["a_call_us"]
            print(
                f"{layout:13} {row['call']:17} {row['one_image_us']:6.1f} us   kernel {row['kernel_us']:6.1f} us   "
                f"the call {middle:6.1f} [{low:.1f}, {high:.1f}] us {judged(middle, row.get('target'))}",
                flush=True,
            )
    if args.name:
        print(write(args.name, rows))


if __name__ == "__main__":
    main()
