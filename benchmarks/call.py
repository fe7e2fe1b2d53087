"""What one call costs beside its arithmetic, for a map so small that it shows: ``python benchmarks/call.py``.

The kernel's own time is proportional to the number of images, as each is worked on by itself, and all
else (Python, the dispatcher, autograd, allocation, the parameters, waking threads) is paid once a call.
A line through the times of one to four images of 2048 x 7 x 7, all of which fit in the second cache, has
the first as its slope and the second where it meets zero images.
"""

import argparse
import statistics

import torch
from layer import FORMATS, layer_with_random_gates
from timing import interleaved, judged, write
from torch import Tensor

CHANNELS, SIZE, BATCHES = 2048, 7, (1, 2, 3, 4)
TARGET = 25.0  # microseconds


def measure(layout: str, repetitions: int) -> list[dict]:
    torch.manual_seed(0)
    layer = layer_with_random_gates(CHANNELS)
    detached = [p.detach() for p in (layer.cweight, layer.cbias, layer.sweight, layer.sbias)]
    norm = [layer.gn.weight.detach(), layer.gn.bias.detach()]

    def op(x: Tensor) -> Tensor:
        return torch.ops.shuffle_attention.shuffle_attention(x, *detached, *norm, layer.gn.eps, True)

    def without_gradients(function, x: Tensor):
        def run():
            with torch.no_grad():
                return function(x)

        return run

    functions = {}
    for batch in BATCHES:
        x = torch.randn(batch, CHANNELS, SIZE, SIZE).to(memory_format=FORMATS[layout])
        leaf = x.clone().requires_grad_()
        functions["clone", batch] = without_gradients(Tensor.clone, x)
        functions["op", batch] = without_gradients(op, x)
        functions["module", batch] = without_gradients(layer, x)
        functions["module, training", batch] = lambda x=leaf: layer(x)
    times = interleaved(functions, repetitions)
    rows = []
    for name in ("clone", "op", "module", "module, training"):
        # A line for each repetition: what disturbs the machine then is the same for its points.
        lines = [
            statistics.linear_regression(BATCHES, [times[name, batch].seconds[r] * 1e6 for batch in BATCHES])
            for r in range(repetitions)
        ]
        low, middle, high = statistics.quantiles([fit.intercept for fit in lines], n=4)
        row = {
            "call": name,
            "layout": layout,
            "one_image_us": round(times[name, 1].median * 1e6, 1),
            "an_image_us": round(statistics.median(fit.slope for fit in lines), 1),
            "a_call_us": [round(us, 1) for us in (middle, low, high)],
        }
        if name != "clone":
            row["target"] = TARGET
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=41)
    parser.add_argument("--name", help="write results/NAME.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = []
    print(f"one image of {CHANNELS} x {SIZE} x {SIZE}; of this, what an image and what a call takes [quartiles]")
    for layout in FORMATS:
        for row in measure(layout, args.repetitions):
            rows.append(row)
            middle, low, high = row["a_call_us"]
            print(
                f"{layout:13} {row['call']:17} {row['one_image_us']:6.1f} us   an image {row['an_image_us']:6.1f} us   "
                f"a call {middle:6.1f} [{low:.1f}, {high:.1f}] us {judged(middle, row.get('target'))}",
                flush=True,
            )
    if args.name:
        print(write(args.name, rows))


if __name__ == "__main__":
    main()
