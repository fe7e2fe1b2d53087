"""Time the layer beside a copy of its map: ``python benchmarks/layer.py``.

The map is read and written once by ``x.clone()``, which is the least that a layer can do. Forward
alone has that same floor; forward and backward read and write five maps where the clone reads and
writes two, so that their floor is 2.5. The reference is what runs without the kernels; ``compiled`` is
``torch.compile`` of the reference.

The C library gives large maps back to the system and fetches them anew, page by page, which costs
more than the copy. ``MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=8589934592`` in the
environment keeps them, and leaves the kernels alone to be compared.
"""

import argparse
import itertools

import torch
from timing import Times, interleaved, judged, write
from torch import Tensor

from shuffle_attention import ShuffleAttention
from shuffle_attention.kernels import reference

STAGES = [(256, 56), (512, 28), (1024, 14), (2048, 7)]  # of ResNet-50: channels, height and width
FORMATS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
TARGETS = {("NCHW", 14): 2.0, ("NCHW", 7): 2.5, ("channels_last", None): 2.0, ("NCHW", None): 1.5}
BOTH_WAYS_TARGET = 4.5


def targets(batch: int, layout: str, size: int) -> dict[str, float]:
    """Return the targets of a row, which exist for batch 32 only."""
    if batch != 32:
        return {}
    return {"forward": TARGETS.get((layout, size), TARGETS[layout, None]), "both_ways": BOTH_WAYS_TARGET}


def layer_with_random_gates(channels: int) -> ShuffleAttention:
    layer = ShuffleAttention(channels)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
    return layer


def by_reference(layer: ShuffleAttention, x: Tensor) -> Tensor:
    gn = layer.gn
    params = [layer.cweight, layer.cbias, layer.sweight, layer.sbias, gn.weight, gn.bias]
    return reference.shuffle_attention(x, *params, gn.eps, layer.shuffle)


def both_ways(function, layer: ShuffleAttention, x: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(function(x), [x, *layer.parameters()], grad)


def check(layer: ShuffleAttention, x: Tensor, grad: Tensor) -> None:
    """Check that the layer and the reference agree before anything is timed."""
    expected = both_ways(lambda x: by_reference(layer.double(), x), layer.double(), x.double(), grad.double())
    torch.testing.assert_close(layer.float()(x), by_reference(layer, x), rtol=1e-4, atol=1e-5)
    for got, want in zip(both_ways(layer, layer, x, grad), expected, strict=True):
        scale = want.abs().max().item()
        torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-5 * scale)


def measure(
    batch: int, channels: int, size: int, layout: str, dtype: torch.dtype, repetitions: int, compiled: bool
) -> dict:
    torch.manual_seed(0)
    layer = layer_with_random_gates(channels)
    memory_format = FORMATS[layout]
    x = torch.randn(batch, channels, size, size).to(memory_format=memory_format)
    grad = torch.randn_like(x)
    check(layer, x[:2].clone(memory_format=torch.preserve_format).requires_grad_(), grad[:2])
    x, grad = x.to(dtype), grad.to(dtype)
    leaf = x.clone().requires_grad_()

    def forward(function):
        def run():
            with torch.no_grad():
                return function(x)

        return run

    def backward(function):
        return lambda: both_ways(function, layer, leaf, grad)

    def reference_of(x):
        return by_reference(layer, x)

    functions = {
        "clone": forward(Tensor.clone),
        "forward": forward(layer),
        "both_ways": backward(layer),
        "reference_forward": forward(reference_of),
        "reference_both_ways": backward(reference_of),
    }
    if compiled:
        torch.compiler.reset()
        fast = torch.compile(reference_of, dynamic=False)
        functions |= {"compiled_forward": forward(fast), "compiled_both_ways": backward(fast)}
    times = interleaved(functions, repetitions)
    row = {"batch": batch, "channels": channels, "size": size, "layout": layout, "dtype": str(dtype)[6:]}
    row |= {"clone_us": round(times["clone"].median * 1e6, 1), "forward_us": round(times["forward"].median * 1e6, 1)}
    row |= {f"{name}_over_clone": _rounded(times, name) for name in times if name != "clone"}
    return row | {f"{name}_target": target for name, target in targets(batch, layout, size).items()}


def _rounded(times: dict[str, Times], name: str) -> list[float]:
    return [round(ratio, 2) for ratio in times[name].over(times["clone"])]


def line(row: dict) -> str:
    """Return a row as printed: medians [quartiles], and whether a target is met."""
    text = f"{row['layout']:13} {row['batch']:2} x {row['channels']:4} x {row['size']:2}^2"
    text += f"  clone {row['clone_us']:8.1f} us"
    for name, label in (("forward", "forward"), ("both_ways", "both ways")):
        middle, low, high = row[f"{name}_over_clone"]
        text += f"  {label} {middle:5.2f} [{low:.2f}, {high:.2f}] {judged(middle, row.get(f'{name}_target')):13}"
    for name in ("reference", "compiled"):
        if f"{name}_forward_over_clone" in row:
            ways = (row[f"{name}_{way}_over_clone"][0] for way in ("forward", "both_ways"))
            text += f"  {name} " + " ".join(f"{ratio:5.1f}" for ratio in ways)
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=21)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--layouts", nargs="+", default=list(FORMATS), choices=list(FORMATS))
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--compiled", type=int, nargs="*", default=[32], help="batches to compile the reference for")
    parser.add_argument("--name", help="write results/NAME.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    rows = []
    print("ratios to x.clone(), median [quartiles]; the targets are for batch 32 in float32")
    for layout, batch, (channels, size) in itertools.product(args.layouts, args.batches, STAGES):
        dtype = getattr(torch, args.dtype)
        rows.append(measure(batch, channels, size, layout, dtype, args.repetitions, batch in args.compiled))
        print(line(rows[-1]), flush=True)
    if args.name:
        print(write(args.name, rows))


if __name__ == "__main__":
    main()
