"""Time the layer beside a copy of its map: ``python benchmarks/layer.py``.

The map is read and written once by ``x.clone()``, which is the least that a layer can do. Forward
alone has that same floor; forward and backward read and write five maps where the clone reads and
writes two, so that their floor is 2.5. The reference is what runs without the kernels; ``compiled`` is
``torch.compile`` of the reference.

The C library gives large maps back to the system and fetches them again, page by page, which costs
more than the copy. ``MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=8589934592`` in the
environment keeps them, so that the kernels alone are compared.
"""

import itertools
from collections.abc import Callable

import torch
from timing import FORMATS, STAGES, line, measure, options, write
from torch import Tensor

from shuffle_attention import ShuffleAttention
from shuffle_attention.kernels import reference

TARGETS = {("NCHW", 14): 2.0, ("NCHW", 7): 2.5, ("channels_last", None): 2.0, ("NCHW", None): 1.5}
BOTH_WAYS_TARGET = 4.5


def targets(batch: int, layout: str, size: int) -> dict[str, float]:
    """Return the targets of a row, which exist for batch 32 only."""
    if batch != 32:
        return {}
    return {"forward": TARGETS.get((layout, size), TARGETS[layout, None]), "both ways": BOTH_WAYS_TARGET}


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


def layer_calls(
    batch: int, channels: int, size: int, layout: str, dtype: torch.dtype = torch.float32, *, compiled: bool = False
) -> dict[str, Callable[[], object]]:
    """Return what is timed: a copy of the map, and the layer and its reference forward and both ways."""
    torch.manual_seed(0)
    layer = layer_with_random_gates(channels)
    x = torch.randn(batch, channels, size, size).to(memory_format=FORMATS[layout])
    grad = torch.randn_like(x)
    check(layer, x[:2].clone(memory_format=torch.preserve_format).requires_grad_(), grad[:2])
    x, grad = x.to(dtype), grad.to(dtype)
    leaf = x.clone().requires_grad_()

    def reference_of(x: Tensor) -> Tensor:
        return by_reference(layer, x)

    functions = {"": layer, "reference ": reference_of}
    if compiled:
        torch.compiler.reset()
        functions["compiled "] = torch.compile(reference_of, dynamic=False)
    calls: dict[str, Callable[[], object]] = {"clone": x.clone}
    for name, function in functions.items():
        calls[f"{name}forward"] = torch.no_grad()(lambda function=function: function(x))
        calls[f"{name}both ways"] = lambda function=function: both_ways(function, layer, leaf, grad)
    return calls


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--repetitions", type=int, default=11)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--layouts", nargs="+", default=list(FORMATS), choices=list(FORMATS))
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--compiled", type=int, nargs="*", default=[32], help="batches to compile the reference for")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    rows = []
    print("ratios to x.clone(), median [quartiles]; the targets are for batch 32 in float32")
    for layout, batch, (channels, size) in itertools.product(args.layouts, args.batches, STAGES):
        about = {"layout": layout, "batch": batch, "channels": channels, "size": size, "dtype": args.dtype}
        dtype = getattr(torch, args.dtype)
        calls = layer_calls(batch, channels, size, layout, dtype, compiled=batch in args.compiled)
        goals = targets(batch, layout, size) if args.dtype == "float32" else {}
        rows.append(measure(about, calls, lambda name: "clone", args.repetitions, goals))
        print(line(rows[-1]), flush=True)
    if args.name:
        print(write(args.name, rows))


if __name__ == "__main__":
    main()
