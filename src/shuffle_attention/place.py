"""Where this process computes: its device, its memory format and precision, and which of how many processes it is."""

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from timm.utils.distributed import init_distributed_device_so
from torch import distributed, nn

from .errors import InputError

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Place:
    """Where this process computes and which of how many it is."""

    device: torch.device
    rank: int = 0
    world: int = 1

    def take(self, model: nn.Module, *, channels_last: bool) -> nn.Module:
        """Returns a network moved to the device, its convolutions in NHWC memory format if asked for."""
        model = model.to(self.device)
        return model.to(memory_format=torch.channels_last) if channels_last else model


@contextmanager
def place_on(device: str) -> Iterator[Place]:
    """This process among those that torchrun or SLURM started, if any did."""
    if device == "auto":
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        device = accelerator.type if accelerator else "cpu"
    try:
        torch.zeros(1, device=device).item()  # meta has no values
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {device!r} cannot be used: {str(error).splitlines()[0]}") from error
    found = init_distributed_device_so(device)
    place = Place(torch.device(found["device"]), int(found["global_rank"]), int(found["world_size"]))
    if place.rank != 0:
        logging.getLogger(__package__).setLevel(logging.ERROR)
    try:
        yield place
    finally:
        if place.world > 1:
            distributed.destroy_process_group()


def autocast(place: Place, precision: str) -> AbstractContextManager:
    """Returns the context in which a network computes in ``precision``: fp32, bf16 or fp16."""
    if precision not in PRECISIONS:
        return nullcontext()
    return torch.autocast(place.device.type, PRECISIONS[precision])
