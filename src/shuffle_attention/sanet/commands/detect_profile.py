"""The command ``sanet detect profile``: what a detector costs on several backbones."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN

from ...errors import InputError
from ...files import require_folder_of, write_json
from ...models.detectors import ARCHITECTURES, create_detector
from ..console import console, table
from ..device import open_process
from ..environment import environment
from ..profile.detectors import Cost, detector_cost, keep_all
from ..tasks.detection.batches import to_device
from ..timing import Times, interleaved, wait_for

_OBJECTS = 8  # in an image that is trained on


def profile_command(
    backbones: Sequence[str],
    arch: str,
    *,
    backbone_args: Mapping[str, Any],
    num_classes: int,
    size: tuple[int, int],
    batch_size: int,
    frozen_norm: bool,
    device: str,
    threads: int | None,
    repetitions: int,
    json_file: str | None,
) -> int:
    """Runs ``sanet detect profile`` and returns its exit code."""
    for name, value in {"--batch-size": batch_size, "--repetitions": repetitions, "--size": min(size)}.items():
        if value < 1:
            raise InputError(f"{name} must be at least 1, got {value}")
    if len(set(backbones)) < len(backbones):
        raise InputError(f"each backbone can be named once, got {', '.join(backbones)}")
    require_folder_of("--json", json_file)
    if threads is not None:
        torch.set_num_threads(threads)
    options: dict[str, Any] = {"min_size": min(size), "max_size": max(size), "frozen_norm": frozen_norm}
    options["backbone_options"] = backbone_args
    networks: dict[str, nn.Module] = {}
    for backbone in backbones:
        torch.manual_seed(0)
        networks[backbone] = create_detector(arch, backbone, num_classes, **options)
    costs = {name: detector_cost(network, *size) for name, network in networks.items()}
    for network in networks.values():
        work_alike(network, size)
    with open_process(device) as place:
        networks = {name: network.to(place.device) for name, network in networks.items()}
        times = {}
        for job, make in {"inference": _inference, "training step": training_step}.items():
            calls = {name: make(net, arch, size, batch_size, place.device) for name, net in networks.items()}
            times[job] = interleaved(calls, repetitions)
    _print(costs, times)
    if json_file is not None:
        settings: dict[str, Any] = {"arch": arch, "size": size, "batch_size": batch_size, "num_classes": num_classes}
        settings["backbone_args"] = dict(backbone_args)
        first = backbones[0]
        rows = {
            name: {
                **asdict(costs[name]),
                **{job: {"seconds": t[name].median, "over_first": t[name].over(t[first])} for job, t in times.items()},
            }
            for name in backbones
        }
        content = {
            "machine": environment(),
            "settings": {**settings, "frozen_norm": frozen_norm, "repetitions": repetitions},
            "detectors": rows,
        }
        write_json(json_file, content)
    return 0


def work_alike(model: nn.Module, size: tuple[int, int]) -> None:
    """Lets detectors differ in their backbones alone, though none was trained.

    Each goes on with the same proposals, and its norms have the statistics of what they see: with those that they start
    with, values would grow or vanish from block to block, in each backbone at another pace.
    """
    keep_all(model)
    parts: Any = model
    if isinstance(model, GeneralizedRCNN):
        head = parts.rpn.head
        for layer in (head.cls_logits, head.bbox_pred):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
    body = parts.backbone.body
    norms = [module for module in body.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
    with torch.no_grad():
        body(torch.randn(2, 3, *size))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.train()


def _inference(
    model: nn.Module, arch: str, size: tuple[int, int], batch_size: int, device: torch.device
) -> Callable[[], object]:
    images = list(torch.rand(batch_size, 3, *size, device=device))

    @torch.inference_mode()
    def run() -> None:
        model.eval()(images)
        wait_for(device)

    return run


def training_step(
    model: nn.Module, arch: str, size: tuple[int, int], batch_size: int, device: torch.device
) -> Callable[[], object]:
    torch.manual_seed(0)  # objects elsewhere would have more or fewer proposals to learn from
    corners = torch.rand(batch_size, _OBJECTS, 2) * torch.tensor([size[1], size[0]]) * 0.7
    boxes = torch.cat([corners, corners + 0.25 * min(size)], dim=2)
    targets = [{"boxes": each, "labels": torch.ones(_OBJECTS, dtype=torch.int64)} for each in boxes]
    if ARCHITECTURES[arch].masks:
        for target in targets:
            target["masks"] = torch.ones(_OBJECTS, *size, dtype=torch.uint8)
    images, targets = to_device(torch.rand(batch_size, 3, *size).unbind(), targets, device)
    # A step takes the same time at any rate; at none the proposals stay those that all detectors go on with.
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0)

    def run() -> None:
        torch.manual_seed(0)  # which proposals are learnt from is drawn
        torch.stack([*model.train()(images, targets).values()]).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        wait_for(device)

    return run


def _print(costs: dict[str, Cost], times: dict[str, dict[str, Times]]) -> None:
    first = next(iter(costs))
    sizes = table(("", "parameters", "GFLOPs", *times))
    ratios = table(("", *times), title=f"over {first}, with quartiles")
    for name, cost in costs.items():
        milliseconds = [f"{1e3 * each[name].median:,.0f} ms" for each in times.values()]
        sizes.add_row(name, f"{cost.parameters:,}", f"{cost.macs / 1e9:.2f}", *milliseconds)
        over = ["{:.3f} [{:.3f}, {:.3f}]".format(*each[name].over(each[first])) for each in times.values()]
        ratios.add_row(name, *over)
    console.print(sizes)
    if len(costs) > 1:
        console.print(ratios)
