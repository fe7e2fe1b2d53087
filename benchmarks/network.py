"""What attention costs a whole network: ``python benchmarks/network.py``.

SA-ResNet-50 beside timm's ResNet-50 and SE-ResNet-50, and beside itself with its blocks run module by
module. Every figure is a ratio to ResNet-50 within one repetition; ``kept`` is the bytes that the
forward of a training step keeps for the backward, parameters apart.
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import timm
import torch
from timing import interleaved, write
from torch import Tensor, nn

import shuffle_attention.models  # noqa: F401  (registers the networks)
from shuffle_attention import fusing, models

T = TypeVar("T")
NAMES = {"plain": "resnet50", "sa": "sa_resnet50", "sa-modules": "sa_resnet50", "se": "seresnet50"}
TARGETS = {"inference": 0.98, "training step": 0.97}
FORMATS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}


def network(name: str) -> nn.Module:
    """The network with its BatchNorms as they start, so that all of them compute on like numbers."""
    torch.manual_seed(0)
    return timm.create_model(NAMES[name], zero_init_last=False)


def unfused(call: Callable[[], T]) -> Callable[[], T]:
    """The call with the blocks' modules run one by one."""

    def run() -> T:
        models.can_fuse = lambda *_: False
        try:
            return call()
        finally:
            models.can_fuse = fusing.can_fuse

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


def kept(model: nn.Module, images: Tensor) -> int:
    """Bytes of what is kept between forward and backward."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    model.train()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = model(images)
        total = sum(storages.values())
    del y
    return total


def measure(batch: int, size: int, layout: str, repetitions: int, names: list[str]) -> list[dict[str, object]]:
    images = torch.randn(batch, 3, size, size).contiguous(memory_format=FORMATS[layout])
    rows = []
    nets = {name: network(name).to(memory_format=FORMATS[layout]) for name in names}
    memory = {}
    for name, net in nets.items():
        count = partial(kept, net, images)
        memory[name] = unfused(count)() if name == "sa-modules" else count()
    for job, make in (("inference", inference), ("training step", training_step)):
        calls = {name: make(net, images) for name, net in nets.items()}
        if "sa-modules" in calls:
            calls["sa-modules"] = unfused(calls["sa-modules"])
        times = interleaved(calls, repetitions)
        row: dict[str, object] = {"job": job, "batch": batch, "size": size, "layout": layout, "target": TARGETS[job]}
        row["plain_ms"] = round(times["plain"].median * 1e3, 1)
        for name in names:
            row[f"{name}_over_plain"] = [round(ratio, 3) for ratio in times[name].over(times["plain"])]
            row[f"{name}_kept_over_plain"] = round(memory[name] / memory["plain"], 3)
        rows.append(row)
        print(f"{job:14} {layout:14}", *(f"{n} {row[f'{n}_over_plain'][0]:.3f}" for n in names), flush=True)  # type: ignore[index]
    print(f"{'kept':14} {layout:14}", *(f"{name} {memory[name] / memory['plain']:.3f}" for name in names), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--networks", nargs="+", default=["plain", "sa", "sa-modules"], choices=NAMES)
    parser.add_argument("--name", default="network")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for layout in FORMATS:
        rows += measure(options.batch, options.size, layout, options.repetitions, options.networks)
    print(write(options.name, rows))


if __name__ == "__main__":
    main()
