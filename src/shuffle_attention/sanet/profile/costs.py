"""What a network costs: parameters, multiply-adds, time, and what it keeps for the backward."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..timing import Times, interleaved, wait_for

# Multiply-adds for each value read, as ptflops counts them; FlopCounterMode leaves them out.
_POINTWISE = {nn.BatchNorm2d: 2, nn.ReLU: 1, nn.MaxPool2d: 1}


@dataclass(frozen=True)
class Size:
    """What a network has and computes, whatever the machine.

    Attributes:
        parameters: Their number, classifier included.
        multiply_adds: Of convolutions and matrix products for one image, biases and elementwise work not counted.
        with_pointwise: The same with 2 for each value that a BatchNorm reads and 1 for each that a ReLU or a max
            pooling reads, which is how the tables of most papers count. What an attention pools, scales or
            normalises by itself is in neither.
    """

    parameters: int
    multiply_adds: int
    with_pointwise: int


@dataclass(frozen=True)
class Profile:
    """What a network costs beside the first of those that it was measured with.

    Attributes:
        name: Its name.
        size: Parameters and multiply-adds.
        kept: Bytes that the forward of a training step keeps for the backward, parameters apart.
        forward: Times of inference.
        step: Times of a training step: forward, backward and the update by SGD with momentum.
    """

    name: str
    size: Size
    kept: int
    forward: Times
    step: Times

    def to_dict(self, first: "Profile") -> dict[str, Any]:
        """Returns the figures, times in seconds, and their ratios to ``first`` with the quartiles of those of times."""
        return {
            "name": self.name,
            **asdict(self.size),
            "kept_bytes": self.kept,
            "forward_seconds": self.forward.median,
            "step_seconds": self.step.median,
            "over_first": {
                "parameters": self.size.parameters / first.size.parameters,
                "multiply_adds": self.size.multiply_adds / first.size.multiply_adds,
                "kept_bytes": self.kept / first.kept,
                "forward": self.forward.over(first.forward),
                "step": self.step.over(first.step),
            },
        }


def size_of(model: nn.Module, in_chans: int, img_size: int) -> Size:
    """Returns what a network has and computes for one image.

    Args:
        model: Network, best made under ``torch.device("meta")``, where nothing is computed or stored.
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

    hooks = [module.register_forward_hook(count) for module in model.modules() if isinstance(module, (*_POINTWISE,))]
    training = model.training
    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model.eval()(torch.zeros(1, in_chans, img_size, img_size, device=device))
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    products = counter.get_total_flops() // 2
    return Size(sum(p.numel() for p in model.parameters()), products, products + pointwise)


def kept_for_backward(model: nn.Module, images: Tensor) -> int:
    """Returns the bytes that a forward in training mode keeps for the backward, parameters apart."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    model.train()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(images)
        total = sum(storages.values())
    del output
    return total


def profile(networks: Mapping[str, nn.Module], images: Tensor, repetitions: int) -> list[Profile]:
    """Returns what networks cost, timed one after the other in every repetition.

    Args:
        networks: Networks giving logits, on the device of the images; they are trained a little.
        images: A batch (B, C, H, W) of square images.
        repetitions: How often each is timed.
    """
    sizes = {name: size_of(net, images.shape[1], images.shape[2]) for name, net in networks.items()}
    kept = {name: kept_for_backward(net, images) for name, net in networks.items()}
    forward = interleaved({name: _inference(net, images) for name, net in networks.items()}, repetitions)
    step = interleaved({name: _training_step(net, images) for name, net in networks.items()}, repetitions)
    return [Profile(name, sizes[name], kept[name], forward[name], step[name]) for name in networks]


def _inference(model: nn.Module, images: Tensor) -> Callable[[], object]:
    @torch.inference_mode()
    def run() -> None:
        model.eval()(images)
        wait_for(images.device)

    return run


def _training_step(model: nn.Module, images: Tensor) -> Callable[[], object]:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)

    def run() -> None:
        logits = model.train()(images)
        labels = torch.arange(len(images), device=images.device) % logits.shape[1]
        nn.functional.cross_entropy(logits, labels).backward()
        optimizer.step()
        optimizer.zero_grad()  # no network holds gradients while another one is timed
        wait_for(images.device)

    return run
