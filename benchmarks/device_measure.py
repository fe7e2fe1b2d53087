"""The kernels beside a copy of their map, and ResNet-50 with attention beside without, timed on a device.

Everything in a row is timed side by side, in an order drawn for each repetition, with the cache emptied before each
call. What a kernel must move at the least (``FLOORS``, in maps) over its time, over the bandwidth of the copy, is its
share of the copy's bandwidth.
"""

import argparse
import copy
import functools
import itertools
import random
import time
from collections.abc import Callable
from typing import Any

import timm
import torch
import torchvision
from published import Published
from tail import by_modules, plain
from timing import FORMATS, STAGES, Times, judged
from torch import Tensor, nn

from shuffle_attention import ShuffleAttention, attach
from shuffle_attention.deploy import rewrite
from shuffle_attention.kernels import has_kernels
from shuffle_attention.models.attention_resnet import resnet_with
from shuffle_attention.models.fused_block import block_tail
from shuffle_attention.sanet.profile.costs import kept_for_backward

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
# Maps that have to be read or written, where no pass can keep one.
FLOORS = {"layer forward": 2, "layer backward": 3, "tail forward": 4, "tail backward": 7}
BANDWIDTH_TARGET, LARGE = 0.85, 64 << 20  # for maps of 64 MiB and up
NETWORK_TARGETS = {"eager": 1.00, "compiled": 1.03}
# Other ways to cut maps in channels_last than the default, to choose by: Sizes in kernels/backends/triton/launch.py.
CUTS: tuple[dict[str, int], ...] = (
    {"stages": 1},
    {"stages": 2},
    {"stages": 4},
    {"values_in_nhwc": 2048, "thread_values": 8},
    {"values_in_nhwc": 2048, "thread_values": 8, "stages": 1},
    {"values_in_nhwc": 512},
    {"channels": 32},
    {"programs": 1024},
    {"programs": 4096},
)
NEEDS = {"map": 15.0, "eager": 60.0, "compiled": 240.0}  # seconds of a row at least, most of them for compilation


class Clock:
    """Times of calls on a device."""

    def __init__(self, device: str, repetitions: int):
        self.device, self.repetitions = device, repetitions
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

    def interleaved(self, calls: dict[str, Callable[[], object]]) -> dict[str, Times]:
        for call in calls.values():
            call(), call()
        seconds = {name: [] for name in calls}
        order = random.Random(0)
        for _ in range(self.repetitions):
            for name in order.sample(list(calls), len(calls)):
                seconds[name].append(self.seconds(calls[name]))
        return {name: Times(values) for name, values in seconds.items()}

    def peak(self, call: Callable[[], object]) -> int | None:
        """Return the bytes that a call allocates at most beyond what is there."""
        if self.device != "cuda":
            return None
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before


def measure_map(clock: Clock, shape: tuple[int, ...], layout: str, dtype: str, cut: dict[str, int]) -> dict[str, Any]:
    """Time layer and block tail, forward and backward, beside a copy, the plain tail and the published operations.

    Maps that are cut in another way than the default are timed beside the copy alone.
    """
    if cut:
        from shuffle_attention.kernels.backends.triton import launch

        default = launch.SIZES
        try:
            launch.SIZES = launch.Sizes(**cut)
            return time_map(clock, shape, layout, dtype, others=False) | {"cut": cut}
        finally:
            launch.SIZES = default
    return time_map(clock, shape, layout, dtype)


def time_map(clock: Clock, shape: tuple[int, ...], layout: str, dtype: str, others: bool = True) -> dict[str, Any]:
    torch.manual_seed(0)
    channels = shape[1]
    u, shortcut, grad = (
        torch.randn(shape, device=clock.device, dtype=DTYPES[dtype]).to(memory_format=FORMATS[layout]) for _ in range(3)
    )
    copied = torch.empty_like(u)
    modules = {"kernel": ShuffleAttention(channels), "published": Published(channels)}
    norm = nn.BatchNorm2d(channels).to(clock.device)
    for module in modules.values():
        module.to(clock.device)
        for parameter in module.parameters():
            nn.init.normal_(parameter, generator=torch.Generator(clock.device).manual_seed(1))
    calls: dict[str, Callable[[], object]] = {"copy": lambda: copied.copy_(u)}

    def add(name: str, function: Callable[..., Tensor], maps: tuple[Tensor, ...], *owners: nn.Module) -> None:
        calls[name.format("forward")] = torch.no_grad()(lambda: function(*maps, *owners))
        leaves, owners = [t.detach().requires_grad_() for t in maps], copy.deepcopy(owners)  # statistics change forward
        wanted = [*leaves, *(p for owner in owners for p in owner.parameters())]
        y = function(*leaves, *owners)
        calls[name.format("backward")] = lambda: torch.autograd.grad(
            y, wanted, grad, retain_graph=True, allow_unused=True
        )

    for name, module in list(modules.items())[: 1 + others]:
        add(f"layer {{}} {name}", lambda x, layer: layer(x), (u,), module)
    tails = {"kernel": block_tail, "plain": plain, "published": by_modules}
    for name, function in list(tails.items())[: 1 + 2 * others]:
        add(
            f"tail {{}} {name}",
            function,
            (u, shortcut),
            norm,
            modules["published" if name == "published" else "kernel"],
        )
    times = clock.interleaved(calls)
    count = u.numel() * u.element_size()
    bandwidth = 2 * count / times["copy"].median
    row: dict[str, Any] = {"shape": shape, "layout": layout, "dtype": dtype, "bytes": count}
    row |= {"us": {name: round(measured.median * 1e6, 1) for name, measured in times.items()}}
    row |= {"copy_GB_s": round(bandwidth / 1e9), "target": BANDWIDTH_TARGET if count >= LARGE else None}
    text = [f"copy {row['us']['copy']:.1f} us, {row['copy_GB_s']} GB/s; shares of that (how many times longer others)"]
    for part, floor in FLOORS.items():
        kernel = times[f"{part} kernel"]
        row[f"{part} share"] = share = round(floor * count / kernel.median / bandwidth, 3)
        present = [name for name in ("plain", "published") if f"{part} {name}" in times]
        against = [f"{name} x{times[f'{part} {name}'].over(kernel)[0]:.2f}" for name in present]
        met = "" if count < LARGE else " met" if share >= BANDWIDTH_TARGET else " MISSED"
        text.append(f"{part} {share:.2f}{met} ({', '.join(against)})")
    return row | {"text": "  ".join(text)}


def models(depth: int, device: str) -> dict[str, tuple[str, Callable[[], nn.Module]]]:
    """Return baseline and constructor of each model; all start with the last norm of a branch at 1."""

    def create(attention: str, **options: Any) -> nn.Module:
        name, fixed = resnet_with(attention, depth)
        return timm.create_model(name, **fixed, **options)

    def attached() -> nn.Module:
        model = torchvision.models.get_model(f"resnet{depth}")
        attach(model, "shuffle")
        return model

    made: dict[str, tuple[str, Callable[[], nn.Module]]] = {
        "plain": ("plain", lambda: create("none")),
        "sa": ("plain", lambda: create("shuffle")),
        "se": ("plain", lambda: create("se")),
        "rewritten": ("plain", lambda: rewrite(create("shuffle").to(device).eval())[0]),
        "torchvision": ("torchvision", lambda: torchvision.models.get_model(f"resnet{depth}")),
        "attached": ("torchvision", attached),
    }
    if has_kernels(torch.empty(0, device=device), whole=False):  # elsewhere nothing is rebuilt
        made["rebuild"] = "plain", lambda: create("shuffle", memory="rebuild")
        made["rebuild-all"] = "plain", lambda: create("shuffle", memory="rebuild-all")
    return made


def training_step(model: nn.Module, images: Tensor, half: bool) -> Callable[[], object]:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    labels = torch.arange(len(images), device=images.device) % 1000

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(images.device.type, torch.bfloat16, enabled=half):
            loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()

    return step


def inference(model: nn.Module, images: Tensor, half: bool) -> Callable[[], object]:
    def run() -> Tensor:
        with torch.inference_mode(), torch.autocast(images.device.type, torch.bfloat16, enabled=half):
            return model(images)

    return run


JOBS = {"inference": inference, "training step": training_step}


def measure_models(clock: Clock, how: str, job: str, dtype: str, dry_run: bool) -> dict[str, Any]:
    """Time a job for each model, in channels_last; float32 convolutions may use TF32, as PyTorch lets them."""
    batch, size = (2, 32) if dry_run else (128, 224)
    half = dtype == "bfloat16"
    images = torch.randn(batch, 3, size, size, device=clock.device).to(memory_format=torch.channels_last)
    made = models(18 if dry_run else 50, clock.device)
    # These differ from "sa" in the other job alone.
    skipped = {"inference": ("rebuild", "rebuild-all"), "training step": ("rewritten",)}[job]
    names = [name for name in made if name not in skipped] if how == "eager" else ["plain", "sa"]
    row: dict[str, Any] = {"how": how, "model_job": job, "dtype": dtype, "batch": batch, "size": size}
    row |= {"target": NETWORK_TARGETS[how], "peak_bytes": {}, "kept_bytes": {}, "ms": {}, "over_baseline": {}}
    calls = {}
    for name in names:
        torch.manual_seed(0)
        try:
            model = made[name][1]().to(clock.device, memory_format=torch.channels_last).train(job == "training step")
            if how == "eager" and job == "training step":
                with torch.autocast(clock.device, torch.bfloat16, enabled=half):
                    row["kept_bytes"][name] = kept_for_backward(model, images)
            if how == "compiled":
                model = torch.compile(model, backend="eager" if dry_run else "inductor")
            call = JOBS[job](model, images, half)
            call(), call()  # compiled, and with the optimiser's state
            row["peak_bytes"][name] = clock.peak(call)
            calls[name] = call
        except Exception as error:  # the others can be compared
            row["wrong"] = f"{row.get('wrong', '')}{name}: {type(error).__name__}: {str(error)[:500]}\n"
    times = clock.interleaved(calls)
    text = []
    for name in calls:
        baseline = made[name][0]
        row["ms"][name] = round(times[name].median * 1e3, 2)
        line = f"{name} {row['ms'][name]} ms"
        if name != baseline and baseline in calls:
            row["over_baseline"][name] = [round(ratio, 3) for ratio in times[name].over(times[baseline])]
            judgement = judged(row["over_baseline"][name][0], row["target"] if name == "sa" else None)
            line += f" x{row['over_baseline'][name][0]:.3f} {judgement}".rstrip()
        for kind in ("kept_bytes", "peak_bytes"):
            if row[kind].get(name):
                line += f", {kind[:4]} {row[kind][name] / 2**20:.0f} MiB"
        text.append(line)
    return row | {"text": "  ".join(text)}


def run(rows, options: argparse.Namespace) -> list[str]:
    """Add a row for each map and each job of the models, and return their names."""
    clock = Clock(options.device, 2 if options.dry_run else options.repetitions)
    shapes = [(2, 128, 7, 7)] if options.dry_run else [(128, channels, size, size) for channels, size in STAGES]
    jobs: dict[str, tuple[float, Callable[[], dict[str, Any]]]] = {}

    def add(kind: str, name: str, function: Callable[..., dict[str, Any]], *arguments: object) -> None:
        needs = 0.0 if options.dry_run else NEEDS[kind]
        jobs[name] = (needs, functools.partial(function, clock, *arguments))

    for dtype in DTYPES:
        for layout, shape in itertools.product(FORMATS, shapes):
            add("map", f"map {dtype} {layout} {'x'.join(map(str, shape))}", measure_map, shape, layout, dtype, {})
        for job in JOBS:
            add("eager", f"models {dtype} eager {job}", measure_models, "eager", job, dtype, options.dry_run)
    for job in JOBS:
        add("compiled", f"models bfloat16 compiled {job}", measure_models, "compiled", job, "bfloat16", options.dry_run)
    for shape, cut in itertools.product(shapes, CUTS[:1] if options.dry_run else CUTS):
        name = f"cut {cut} {'x'.join(map(str, shape))}"
        add("map", name, measure_map, shape, "channels_last", "bfloat16", cut)
    return rows.run({name: job for name, job in jobs.items() if options.only in name})
