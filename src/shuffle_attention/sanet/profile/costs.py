"""Costs of models: parameters, multiply-adds, time, and what a training step keeps for the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..charts import draw_bars
from ..console import console, table
from ..timing import Times, interleaved, wait_for

if TYPE_CHECKING:
    from .detectors import DetectorSize

# Multiply-adds for each value read, as ptflops counts them; FlopCounterMode leaves them out.
_POINTWISE = {nn.BatchNorm2d: 2, nn.ReLU: 1, nn.MaxPool2d: 1}


@dataclass(frozen=True)
class Size:
    """Parameters and multiply-adds of a classifier.

    Attributes:
        parameters: Number of parameters, classifier included.
        multiply_adds: Multiply-adds of convolutions and matrix products for one image, without biases and
            elementwise operations.
        with_pointwise: The same with 2 for each value that a BatchNorm reads and 1 for each that a ReLU or a max
            pooling reads, which is how the tables of most papers count. Neither has what attention itself pools,
            scales or normalises.
    """

    parameters: int
    multiply_adds: int
    with_pointwise: int


@dataclass(frozen=True)
class Profile:
    """Measured costs of a model.

    Attributes:
        name: Name of the model.
        size: Parameters and multiply-adds.
        kept: Bytes that the forward pass of a training step keeps for the backward pass, without parameters.
        forward: Times of inference.
        step: Times of a training step: forward, backward and the update by SGD with momentum.
    """

    name: str
    size: Size | DetectorSize
    kept: int
    forward: Times
    step: Times

    def over(self, first: Profile) -> dict[str, Any]:
        """Return the ratios of the costs to those of another model; of times with quartiles."""
        return {
            "parameters": self.size.parameters / first.size.parameters,
            "multiply_adds": self.size.multiply_adds / first.size.multiply_adds,
            "kept_bytes": self.kept / first.kept,
            "forward": self.forward.over(first.forward),
            "step": self.step.over(first.step),
        }

    def to_dict(self, first: Profile) -> dict[str, Any]:
        """Return the costs, times in seconds, and their ratios to those of ``first``."""
        return {
            "name": self.name,
            **asdict(self.size),
            "kept_bytes": self.kept,
            "forward_seconds": self.forward.median,
            "step_seconds": self.step.median,
            "over_first": self.over(first),
        }


def size_of(model: nn.Module, in_chans: int, img_size: int) -> Size:
    """Return parameters and multiply-adds of a classifier for one image.

    Args:
        model: The model, best created under ``torch.device("meta")``, where nothing is computed or stored.
        in_chans: Channels of the image.
        img_size: Side of the image, pixels.
    """
    device = next(model.parameters()).device
    pointwise = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal pointwise
        for kind, each in _POINTWISE.items():
            if isinstance(module, kind):
                pointwise += each * inputs[0].numel()

    training = model.training
    with ExitStack() as entered, FlopCounterMode(display=False) as counter, torch.no_grad():
        entered.callback(model.train, training)
        for module in model.modules():
            if isinstance(module, (*_POINTWISE,)):
                entered.enter_context(module.register_forward_hook(count))
        model.eval()(torch.zeros(1, in_chans, img_size, img_size, device=device))
    products = counter.get_total_flops() // 2
    return Size(sum(p.numel() for p in model.parameters()), products, products + pointwise)


def kept_for_backward(model: nn.Module, *inputs: Any) -> int:
    """Return the bytes that a forward pass in training mode keeps for the backward pass, without parameters."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    model.train()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(*inputs)
        total = sum(storages.values())
    del output
    return total


def profile(
    models: Mapping[str, nn.Module],
    sizes: Mapping[str, Size | DetectorSize],
    images: Any,
    repetitions: int,
    *targets: Any,
) -> list[Profile]:
    """Return the costs of models, timed in turn in every repetition.

    Args:
        models: Classifiers that return logits, or detectors that return losses by name in training, on the device
            of the images.
        sizes: Size of each model.
        images: A batch (B, C, H, W), or for detectors a list of images.
        repetitions: Number of repetitions.
        targets: Further inputs of a training step, for detectors a list of targets.
    """
    device = images[0].device

    def inference(model: nn.Module) -> Callable[[], object]:
        @torch.inference_mode()
        def run() -> None:
            model.eval()(images)
            wait_for(device)

        return run

    kept = {name: kept_for_backward(model, images, *targets) for name, model in models.items()}
    forward = interleaved({name: inference(model) for name, model in models.items()}, repetitions)
    steps = {name: training_step(model, images, *targets) for name, model in models.items()}
    step = interleaved(steps, repetitions)
    return [Profile(name, sizes[name], kept[name], forward[name], step[name]) for name in models]


def training_step(model: nn.Module, *inputs: Any) -> Callable[[], object]:
    """Return a call that takes one training step and waits for the device."""
    # A step takes the same time at any rate; at 0 all detectors go on to keep the same proposals.
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0, momentum=0.9)

    def run() -> None:
        torch.manual_seed(0)  # detectors sample proposals
        output = model.train()(*inputs)
        if isinstance(output, dict):
            loss = torch.stack([*output.values()]).sum()
        else:
            labels = torch.arange(len(output), device=output.device) % output.shape[1]
            loss = nn.functional.cross_entropy(output, labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()  # no model holds gradients while another one is timed
        wait_for(inputs[0][0].device)

    return run


def print_costs(profiles: Sequence[Profile]) -> None:
    """Print the costs of models, and their ratios to the first of them."""
    first = profiles[0]
    costs = table(("", "parameters", "GFLOPs", "forward", "training step", "kept"))
    for p in profiles:
        times = [f"{1e3 * t.median:,.1f} ms" for t in (p.forward, p.step)]
        gflops = f"{p.size.multiply_adds / 1e9:.3f}"
        costs.add_row(p.name, f"{p.size.parameters:,}", gflops, *times, f"{p.kept / 2**20:,.0f} MiB")
    console.print(costs)
    if len(profiles) > 1:
        columns = ("", "params", "GFLOPs", "forward", "training step", "kept")
        ratios = table(columns, title=f"over {first.name}, times with quartiles")
        for p in profiles[1:]:
            over = p.over(first)
            counts = [f"{over[name]:.4f}" for name in ("parameters", "multiply_adds")]
            times = ["{:.3f} [{:.3f}, {:.3f}]".format(*over[name]) for name in ("forward", "step")]
            ratios.add_row(p.name, *counts, *times, f"{over['kept_bytes']:.3f}")
        console.print(ratios)


def draw_costs(tables: Sequence[Sequence[Profile]], title: str, path: Path) -> None:
    """Draw the ratios of costs to those of the first model of each table, as PNG."""
    names, panels = [], {"parameters": [], "GFLOPs": [], "forward": [], "training step": [], "kept for backward": []}
    for profiles in tables:
        for p in profiles:
            over = p.over(profiles[0])
            names.append(p.name)
            values = over["parameters"], over["multiply_adds"], over["forward"][0], over["step"][0], over["kept_bytes"]
            for panel, value in zip(panels.values(), values, strict=True):
                panel.append(value)
    baselines = [profiles[0].name for profiles in tables]
    draw_bars(names, baselines, panels, f"over {' and '.join(baselines)}: {title}", path)
