"""Time whole models with attention: ``python benchmarks/network.py``.

SA-ResNet-50 beside timm's ResNet-50, its SE-ResNet-50 and ECA-ResNet-50, and beside itself with its
blocks run module by module. Every figure is a ratio to ResNet-50 within one repetition; ``compiled`` are
the first two under ``torch.compile``, as a ratio to ResNet-50 compiled.
"""

import argparse
from collections.abc import Callable
from typing import TypeVar

import timm
import torch
from timing import interleaved, judged, write
from torch import Tensor, nn

from shuffle_attention.models import fused_block
from shuffle_attention.models.attention_resnet import resnet_with

T = TypeVar("T")
can_fuse = fused_block.can_fuse
NETWORKS = {"plain": "none", "sa": "shuffle", "sa-modules": "shuffle", "se": "se", "eca": "eca"}
TARGETS = {"inference": 0.98, "training step": 0.97}
COMPILED_TARGET = 1.05
FORMATS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
# An image more takes longer. What one network leaves in the allocator to the next, in an order drawn anew each time, is
# some percent of either: enough of them for a median that it does not decide.
REPETITIONS = {1: 31, 8: 21, 32: 7}


def network(name: str) -> nn.Module:
    """Return the model with its BatchNorms at their start, so that all models compute on similar numbers."""
    torch.manual_seed(0)
    model, options = resnet_with(NETWORKS[name], 50)
    return timm.create_model(model, **options)


def unfused(call: Callable[[], T]) -> Callable[[], T]:
    """Return the call with the modules of the blocks run one by one."""

    def run() -> T:
        fused_block.can_fuse = lambda *_: False
        try:
            return call()
        finally:
            fused_block.can_fuse = can_fuse

    return run


def inference(model: nn.Module, images: Tensor) -> Callable[[], object]:
    model.eval()

    @torch.inference_mode()
    def run() -> Tensor:
        return model(images)

    return run


def training_step(model: nn.Module, images: Tensor) -> Callable[[], object]:
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    labels = torch.arange(len(images)) % 1000

    def run() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return run


JOBS = {"inference": inference, "training step": training_step}


def images_of(batch: int, size: int, layout: str) -> Tensor:
    return torch.randn(batch, 3, size, size).contiguous(memory_format=FORMATS[layout])


def calls_of(job: str, names: list[str], images: Tensor, layout: str) -> dict[str, Callable[[], object]]:
    """Return the job as a call for each model."""
    calls = {name: JOBS[job](network(name).to(memory_format=FORMATS[layout]), images) for name in names}
    if "sa-modules" in calls:
        calls["sa-modules"] = unfused(calls["sa-modules"])
    return calls


def compiled_calls_of(job: str, images: Tensor, layout: str) -> dict[str, Callable[[], object]]:
    """Return the job for the plain model and for that with attention, compiled."""
    calls = {}
    for name in ("plain", "sa"):
        torch.compiler.reset()
        calls[name] = JOBS[job](torch.compile(network(name).to(memory_format=FORMATS[layout])), images)
        calls[name]()
    return calls


def measure(calls: dict[str, Callable[[], object]], repetitions: int, target: float, about: dict) -> dict:
    """Time ``calls``, print the row and return it."""
    times = interleaved(calls, repetitions)
    row = {**about, "target": target, "plain_ms": round(times["plain"].median * 1e3, 1)}
    row |= {f"{name}_over_plain": [round(ratio, 3) for ratio in times[name].over(times["plain"])] for name in calls}
    text = (
        f"{row['job']:14} {row['batch']:2} {row['layout']:13} plain{' compiled' * row['compiled']} {row['plain_ms']} ms"
    )
    for name in calls:
        if name != "plain":
            middle, low, high = row[f"{name}_over_plain"]
            text += f"  {name} {middle:.3f} [{low:.3f}, {high:.3f}]" + f" {judged(middle, target)}" * (name == "sa")
    print(text, flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=list(REPETITIONS))
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument(
        "--repetitions", type=int, help="for every batch; 15 at batch 1, 9 at 8 and 3 at 32 if not given"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--compiled", type=int, nargs="*", default=[8], help="batches to compile networks for")
    parser.add_argument("--name", help="write results/NAME.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    names = list(dict.fromkeys(["plain", *args.networks]))
    rows = []
    print("ratios to ResNet-50, median [quartiles]; the targets are those of batch 8 at 224 pixels")
    for batch in args.batches:
        repetitions = args.repetitions or REPETITIONS.get(batch, 5)
        for layout in FORMATS:
            images = images_of(batch, args.size, layout)
            for job, target in TARGETS.items():
                about = {"job": job, "batch": batch, "size": args.size, "layout": layout}
                calls = calls_of(job, names, images, layout)
                rows.append(measure(calls, repetitions, target, about | {"compiled": False}))
                if batch in args.compiled:
                    calls = compiled_calls_of(job, images, layout)
                    rows.append(measure(calls, repetitions, COMPILED_TARGET, about | {"compiled": True}))
    if args.name:
        print(write(args.name, rows))


if __name__ == "__main__":
    main()
