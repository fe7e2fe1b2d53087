"""SA-ResNet-50 on a GPU beside timm's ResNet-50 and beside itself with the attention in PyTorch's operations.

bfloat16 by autocast, channels_last, batch 128 at 224 pixels.
"""

import itertools
import statistics
import time
from collections.abc import Callable

import torch
from published import Published
from torch import Tensor, nn

from shuffle_attention import ShuffleAttention
from shuffle_attention.sanet.profile.costs import kept_for_backward

NETWORK_TARGETS = {"eager": 1.00, "compiled": 1.03}


def networks(dry: bool) -> dict[str, nn.Module]:
    import timm

    plain_name, sa_name = ("resnet18", "sa_resnet18") if dry else ("resnet50", "sa_resnet50")
    nets = {"plain": timm.create_model(plain_name), "sa": timm.create_model(sa_name)}
    nets["published"] = timm.create_model(sa_name)
    for module in nets["published"].modules():
        if type(module) is ShuffleAttention:
            module.__class__ = Published  # which the blocks run one by one, as any subclass
    return nets


def training_step(model: nn.Module, images: Tensor) -> Callable[[], object]:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    labels = torch.arange(len(images), device=images.device) % 1000

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(images.device.type, torch.bfloat16):
            loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()

    return step


def inference(model: nn.Module, images: Tensor) -> Callable[[], object]:
    def run() -> Tensor:
        with torch.inference_mode(), torch.autocast(images.device.type, torch.bfloat16):
            return model(images)

    return run


def kept(model: nn.Module, images: Tensor) -> int:
    """Bytes that a forward in bfloat16 keeps for the backward."""
    with torch.autocast(images.device.type, torch.bfloat16):
        return kept_for_backward(model, images)


def compiled(net: nn.Module, dry: bool) -> nn.Module:
    return torch.compile(net, backend="eager" if dry else "inductor")


def peak(call: Callable[[], object], device: str) -> int:
    if device != "cuda":
        return 0
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def measure_networks(clock, dry: bool, repetitions: int, until: float) -> list[dict[str, object]]:
    """Time jobs eager, then compiled; no network is compiled after ``until`` of the monotonic clock."""
    batch, size = (2, 32) if dry else (128, 224)
    images = torch.randn(batch, 3, size, size, device=clock.device).to(memory_format=torch.channels_last)
    nets = {name: net.to(clock.device, memory_format=torch.channels_last) for name, net in networks(dry).items()}
    rows = []
    for how, (job, make) in itertools.product(
        ("eager", "compiled"), (("training step", training_step), ("inference", inference))
    ):
        target = NETWORK_TARGETS[how]
        row: dict[str, object] = {"part": "network", "job": job, "how": how, "batch": batch, "target": target}
        calls = {}
        for name, net in nets.items():
            if how == "compiled" and time.monotonic() > until:
                print(f"{how} {job}: {name} is left out, the time is up", flush=True)
                continue
            net.train(job == "training step")
            call = make(compiled(net, dry) if how == "compiled" else net, images)
            call(), call()
            row[f"{name} peak bytes"] = peak(call, clock.device)
            if how == "eager" and job == "training step":
                row[f"{name} kept bytes"] = kept(net, images)
            calls[name] = call
        if "plain" not in calls:
            continue
        seconds = clock.interleaved(calls, repetitions)
        columns = []
        for name, values in seconds.items():
            row[f"{name} ms"] = round(statistics.median(values) * 1e3, 2)
            ratios = [a / b for a, b in zip(values, seconds["plain"], strict=True)]
            row[f"{name} over plain"] = [round(q, 3) for q in statistics.quantiles(ratios, n=4)]
            columns.append(f"{name} {row[f'{name} ms']} ms x{statistics.median(ratios):.3f}")
            for what in ("kept bytes", "peak bytes"):
                if row.get(f"{name} {what}"):
                    columns[-1] += f", {what} {row[f'{name} {what}'] / 2**20:.0f} MiB"  # type: ignore[operator]
        print(f"{how:8} {job:13} sa <= {target:.2f}:", *columns, sep="  ", flush=True)
        rows.append(row)
    return rows
