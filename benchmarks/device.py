"""Check and time the kernels on a GPU: ``python benchmarks/device.py``, in one call of a few minutes.

1. The tables of cases of the tests, layer and end of a block, on the GPU against float64 on the CPU.
2. Layer and end of a block beside a copy of the map on the device, PyTorch's own end of a block, and
   the attention in PyTorch's own operations, as the paper's authors wrote it. What a kernel must move at
   the least (in maps: see ``FLOORS``) over its time, over the bandwidth of the copy, is its share of that.
3. SA-ResNet-50 beside timm's ResNet-50 and beside itself with the attention in PyTorch's operations, in
   bfloat16 and channels_last.

``--dry`` runs all of it in small on the CPU, to see that it runs.
"""

import argparse
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable

import torch
from device_cases import check
from published import Published
from timing import write
from torch import Tensor, nn

from shuffle_attention import ShuffleAttention
from shuffle_attention.kernels import has_kernels
from shuffle_attention.models.fused_block import block_tail

STAGES = [(256, 56), (512, 28), (1024, 14), (2048, 7)]  # of ResNet-50: channels, height and width
FORMATS = {"channels_last": torch.channels_last, "NCHW": torch.contiguous_format}
# Maps that have to be read or written, where no pass can keep one.
FLOORS = {"layer forward": 2, "layer both ways": 5, "tail forward": 4, "tail both ways": 11}
BANDWIDTH_TARGET = 0.85  # for maps of 64 MiB and up
LARGE = 64 << 20


class Clock:
    """Seconds of calls on the device, and of nothing else."""

    def __init__(self, device: str):
        self.device = device
        # Larger than the cache, which it empties of what the last call left there.
        self.flush = torch.empty(64 << 20, dtype=torch.int32, device=device) if device == "cuda" else None

    def seconds(self, call: Callable[[], object]) -> float:
        if self.flush is None:
            start = time.perf_counter()
            call()
            return time.perf_counter() - start
        self.flush.zero_()
        torch.cuda._sleep(2_000_000)  # about a millisecond, in which the host gets ahead
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1e3

    def interleaved(self, calls: dict[str, Callable[[], object]], repetitions: int) -> dict[str, list[float]]:
        for call in calls.values():
            for _ in range(3):
                call()
        seconds = {name: [] for name in calls}
        for _ in range(repetitions):
            for name, call in calls.items():
                seconds[name].append(self.seconds(call))
        return seconds


def plain(u: Tensor, shortcut: Tensor, norm: nn.Module, _: nn.Module) -> Tensor:
    """Compute the end of a block without attention as timm does."""
    y = norm(u)
    y += shortcut
    return y.relu_()


def one_by_one(u: Tensor, shortcut: Tensor, norm: nn.Module, attention: nn.Module) -> Tensor:
    y = attention(norm(u))
    y += shortcut
    return y.relu_()


def measure_map(
    clock: Clock, batch: int, channels: int, size: int, layout: str, dtype: torch.dtype, repetitions: int
) -> dict[str, object]:
    torch.manual_seed(0)
    shape = (batch, channels, size, size)
    u, shortcut, grad = (
        torch.randn(shape, device=clock.device, dtype=dtype).to(memory_format=FORMATS[layout]) for _ in range(3)
    )
    copied = torch.empty_like(u)
    modules = {"kernel": ShuffleAttention(channels), "published": Published(channels)}
    norm = nn.BatchNorm2d(channels).to(clock.device)
    for module in modules.values():
        module.to(clock.device)
        for parameter in module.parameters():
            nn.init.normal_(parameter, generator=torch.Generator(clock.device).manual_seed(1))

    def forward(function, *arguments) -> Callable[[], object]:
        return torch.no_grad()(lambda: function(*arguments))

    def both_ways(function, maps: int, *arguments) -> Callable[[], object]:
        leaves = [a.detach().clone().requires_grad_() for a in arguments[:maps]]
        owners = [m for m in (function, *arguments) if isinstance(m, nn.Module)]
        wanted = [*leaves, *(p for m in owners for p in m.parameters())]
        return lambda: torch.autograd.grad(function(*leaves, *arguments[maps:]), wanted, grad, allow_unused=True)

    calls: dict[str, Callable[[], object]] = {"copy": lambda: copied.copy_(u)}
    for name, module in modules.items():
        calls[f"layer forward {name}"] = forward(module, u)
        calls[f"layer both ways {name}"] = both_ways(module, 1, u)
    for name, function in (("kernel", block_tail), ("plain", plain), ("published", one_by_one)):
        arguments = (u, shortcut, norm, modules["published" if name == "published" else "kernel"])
        calls[f"tail forward {name}"] = forward(function, *arguments)
        calls[f"tail both ways {name}"] = both_ways(function, 2, *arguments)
    seconds = clock.interleaved(calls, repetitions)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    count = u.numel() * u.element_size()
    row: dict[str, object] = {"part": "map", "shape": shape, "layout": layout, "dtype": str(dtype)[6:], "bytes": count}
    row |= {"us": {name: round(value * 1e6, 1) for name, value in median.items()}}
    row |= {"copy_GB_s": round(2 * count / median["copy"] / 1e9)}
    target = f" >= {BANDWIDTH_TARGET}" if count >= LARGE else ""
    columns = [f"copy {median['copy'] * 1e6:7.1f} us {row['copy_GB_s']:5} GB/s"]
    for job, floor in FLOORS.items():
        share = floor / 2 * median["copy"] / median[f"{job} kernel"]
        row[f"{job} share"] = round(share, 3)
        others = [other for other in ("plain", "published") if f"{job} {other}" in median]
        against = [f"{other} x{median[f'{job} {other}'] / median[f'{job} kernel']:.2f}" for other in others]
        columns.append(f"{job} {share:.2f}{target} ({', '.join(against)})")
    print(
        f"{layout:13} {str(dtype)[6:]:8} {'x'.join(map(str, shape)):15} {count >> 20:4} MiB",
        *columns,
        sep="  ",
        flush=True,
    )
    return row | {"target": BANDWIDTH_TARGET if count >= LARGE else None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry", action="store_true", help="in small, on the CPU")
    parser.add_argument("--parts", nargs="+", default=["cases", "maps", "networks"])
    parser.add_argument("--repetitions", type=int, default=21)
    parser.add_argument("--processes", type=int, default=12, help="that check cases side by side")
    parser.add_argument("--minutes", type=float, default=6, help="after which no further network is compiled")
    options = parser.parse_args()
    until = time.monotonic() + 60 * options.minutes
    if not options.dry and not torch.cuda.is_available():
        sys.exit("no CUDA device is here; --dry runs in small on the CPU")
    device = "cpu" if options.dry else "cuda"
    clock = Clock(device)
    repetitions = 3 if options.dry else options.repetitions
    name = "CPU" if options.dry else torch.cuda.get_device_name()
    print(f"{name}, PyTorch {torch.__version__}, kernels: {has_kernels(torch.empty(0, device=device))}", flush=True)
    rows: list[dict[str, object]] = [{"part": "device", "name": name, "cuda": torch.version.cuda}]
    if "cases" in options.parts:
        rows += check(device, 2 if options.dry else options.processes)
    if "maps" in options.parts:
        maps = [(128, *stage, layout, torch.bfloat16) for layout in FORMATS for stage in STAGES]
        maps += [(64, 256, 56, layout, torch.float32) for layout in FORMATS]
        maps += [(256, 512, 28, layout, torch.float16) for layout in FORMATS]
        if options.dry:
            maps = [(2, 128, 7, layout, torch.float32) for layout in FORMATS]
        print("shares of the copy's bandwidth; in parentheses how many times longer the others take")
        rows += [measure_map(clock, *shape, repetitions) for shape in maps]
    if "networks" in options.parts:
        if importlib.util.find_spec("timm") is None:
            print("networks: left out, timm is not installed", flush=True)
        else:
            from device_networks import measure_networks

            rows += measure_networks(clock, options.dry, repetitions, until)
    if not options.dry:
        print(write("device", rows))


if __name__ == "__main__":
    main()
