"""Costs of models: parameters, multiply-adds, time, and what a training step keeps for the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ...deploy import Artefact
from ..charts import draw_bars
from ..console import console, table
from ..timing import Times, interleaved, wait_for

# Multiply-adds for each value read, as ptflops counts them; FlopCounterMode leaves them out.
_POINTWISE = {nn.BatchNorm2d: 2, nn.ReLU: 1, nn.MaxPool2d: 1}

# Ratios of costs, by the name in files of results: the title of their column.
_TITLES = {
    "parameters": "parameters",
    "multiply_adds": "GFLOPs",
    "forward": "forward",
    "step": "training step",
    "kept_bytes": "kept",
    "file_bytes": "file",
}


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
class DetectorSize:
    """Parameters and multiply-adds of a detector.

    Attributes:
        parameters: Number of all parameters.
        trainable: Number of those that have gradients.
        macs: Multiply-adds of convolutions and matrix products for one image; the field's "GFLOPs" for detectors
            are these, in units of 1e9.
        by_part: The same for each part: ``backbone.body``, ``backbone.fpn``, and the heads.
    """

    parameters: int
    trainable: int
    macs: int
    by_part: dict[str, int]

    @property
    def multiply_adds(self) -> int:
        """Return ``macs`` under the name that classifiers use."""
        return self.macs


AnySize = Size | DetectorSize


@dataclass(frozen=True)
class Profile:
    """Measured costs of a model.

    Attributes:
        name: Name of the model.
        size: Parameters and multiply-adds; None for a deployed file, which does not tell them.
        kept: Bytes that the forward pass of a training step keeps for the backward pass, without parameters; None
            for a deployed file, which cannot be trained.
        forward: Times of inference.
        step: Times of a training step: forward, backward and the update by SGD with momentum; None for a file.
        file_bytes: Size of a deployed file; None for a model.
    """

    name: str
    size: AnySize | None
    kept: int | None
    forward: Times
    step: Times | None
    file_bytes: int | None = None

    def over(self, first: Profile) -> dict[str, Any]:
        """Return the ratios of the costs to those of another model; of times with quartiles.

        Those that one of the two does not have are left out.
        """
        ratios: dict[str, Any] = {}
        if self.size and first.size:
            ratios["parameters"] = self.size.parameters / first.size.parameters
            ratios["multiply_adds"] = self.size.multiply_adds / first.size.multiply_adds
        if self.kept and first.kept:
            ratios["kept_bytes"] = self.kept / first.kept
        if self.file_bytes and first.file_bytes:
            ratios["file_bytes"] = self.file_bytes / first.file_bytes
        ratios["forward"] = self.forward.over(first.forward)
        if self.step and first.step:
            ratios["step"] = self.step.over(first.step)
        return ratios

    def to_dict(self, first: Profile) -> dict[str, Any]:
        """Return the costs, times in seconds, and their ratios to those of ``first``."""
        costs = {
            **(asdict(self.size) if self.size else {}),
            "kept_bytes": self.kept,
            "file_bytes": self.file_bytes,
            "forward_seconds": self.forward.median,
            "step_seconds": self.step.median if self.step else None,
        }
        known = {name: value for name, value in costs.items() if value is not None}
        return {"name": self.name, **known, "over_first": self.over(first)}


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
    sizes: Mapping[str, AnySize],
    images: Any,
    repetitions: int,
    *targets: Any,
) -> list[Profile]:
    """Return the costs of models, timed in turn in every repetition.

    Args:
        models: Classifiers that return logits, or detectors that return losses by name in training, on the device
            of the images; of deployed files, only inference is measured.
        sizes: Size of each model that is not a deployed file.
        images: A batch (B, C, H, W), or for detectors a list of images.
        repetitions: Number of repetitions.
        targets: Further inputs of a training step, for detectors a list of targets.
    """
    device = images[0].device

    def inference(model: nn.Module) -> Callable[[], object]:
        own = images.contiguous() if isinstance(model, Artefact) else images  # files read NCHW

        @torch.inference_mode()
        def run() -> None:
            model.eval()(own)
            wait_for(device)

        return run

    trained = {name: model for name, model in models.items() if not isinstance(model, Artefact)}
    kept = {name: kept_for_backward(model, images, *targets) for name, model in trained.items()}
    forward = interleaved({name: inference(model) for name, model in models.items()}, repetitions)
    step = interleaved({name: training_step(model, images, *targets) for name, model in trained.items()}, repetitions)
    files = {name: size_on_disk(model.path) for name, model in models.items() if isinstance(model, Artefact)}
    parts: list[Mapping[str, Any]] = [sizes, kept, forward, step, files]
    return [Profile(name, *(part.get(name) for part in parts)) for name in models]  # pyright: ignore[reportArgumentType]


def size_on_disk(path: Path) -> int:
    """Return the bytes of a deployed file: of all files in a package, and of OpenVINO's weights beside the graph."""
    parts = [each for each in path.rglob("*") if each.is_file()] if path.is_dir() else [path]
    weights = path.with_suffix(".bin")
    return sum(part.stat().st_size for part in parts + [weights] * (path.suffix == ".xml" and weights.is_file()))


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
    files = any(p.file_bytes for p in profiles)
    names = list(_TITLES)[: len(_TITLES) - (not files)]
    columns = ("", *(_TITLES[name] for name in names))
    costs = table(columns)
    for p in profiles:
        row = [f"{p.size.parameters:,}", f"{p.size.multiply_adds / 1e9:.3f}"] if p.size else ["-", "-"]
        row += ["-" if t is None else f"{1e3 * t.median:,.1f} ms" for t in (p.forward, p.step)]
        row += ["-" if size is None else f"{size / 2**20:,.0f} MiB" for size in (p.kept, p.file_bytes)[: 1 + files]]
        costs.add_row(p.name, *row)
    console.print(costs)
    if len(profiles) > 1:
        ratios = table(columns, title=f"over {first.name}, times with quartiles")
        for p in profiles[1:]:
            over = p.over(first)
            ratios.add_row(p.name, *(_ratio(name, over.get(name)) for name in names))
        console.print(ratios)


def _ratio(name: str, value: Any) -> str:
    """Return a ratio as printed."""
    if value is None:
        return "-"
    if name in ("forward", "step"):
        return "{:.3f} [{:.3f}, {:.3f}]".format(*value)
    return f"{value:.3f}" if name.endswith("bytes") else f"{value:.4f}"


def draw_costs(tables: Sequence[Sequence[Profile]], title: str, path: Path) -> None:
    """Draw the ratios of costs to those of the first model of each table, as PNG."""
    costs = [(p.name, p.over(profiles[0])) for profiles in tables for p in profiles]
    names = [_short(name) for name, _ in costs]
    panels = {
        _TITLES[cost]: [over[cost][0] if isinstance(over[cost], tuple) else over[cost] for _, over in costs]
        for cost in _TITLES
        if all(cost in over for _, over in costs)  # deployed files do not have all
    }
    baselines = [_short(profiles[0].name) for profiles in tables]
    draw_bars(names, baselines, panels, f"over {' and '.join(baselines)}: {title}", path)


def _short(name: str) -> str:
    """Return the end of a name, which may be a path."""
    return name if len(name) <= 32 else f"...{name[-29:]}"
