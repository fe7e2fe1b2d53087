"""Device, memory format, precision and distributed rank of this process."""

import ctypes
import logging
import os
import platform
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from timm.utils.distributed import init_distributed_device_so
from torch import distributed, nn

from ..errors import BAD_INPUT, InputError

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Process:
    """This process among those of a distributed run.

    Attributes:
        device: Device that it computes on.
        rank: Its number; 0 is the one that writes and prints.
        world_size: Number of processes.
    """

    device: torch.device
    rank: int = 0
    world_size: int = 1

    def to_device(self, model: nn.Module, *, channels_last: bool) -> nn.Module:
        """Return a network moved to the device, its convolutions in NHWC memory format if asked for."""
        model = model.to(self.device)
        return model.to(memory_format=torch.channels_last) if channels_last else model

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all processes, by rank; all call it together."""
        values = [value] * self.world_size
        if self.world_size > 1:
            distributed.all_gather_object(values, value)
        return values

    def first(self, value: Any) -> Any:
        """Return the value of the first process; all call it together."""
        values = [value]
        if self.world_size > 1:
            distributed.broadcast_object_list(values, src=0, device=self.device)
        return values[0]

    def largest(self, number: int) -> int:
        """Return the largest number of all processes; all call it together."""
        if self.world_size == 1:
            return number
        numbers = torch.tensor([number], dtype=torch.int32, device=self.device)
        distributed.all_reduce(numbers, op=distributed.ReduceOp.MAX)
        return int(numbers)

    @contextmanager
    def all_or_none(self) -> Iterator[None]:
        """End all processes if one of them fails; only the first that does reports why."""
        failure = None
        try:
            yield
        except (InputError, OSError) as error:
            failure = error
        failed = self.gather(failure is not None)
        if failure is not None and failed.index(True) == self.rank:
            raise failure
        if any(failed):
            raise SystemExit(BAD_INPUT)


@contextmanager
def open_process(device: str, *, keep_memory: bool = True) -> Iterator[Process]:
    """Join the processes that torchrun or SLURM started, if any did, and leave them at the end.

    Args:
        device: Device as PyTorch names it; ``auto`` takes the accelerator where there is one.
        keep_memory: On a CPU, keep freed memory for the next step (:func:`keep_freed_memory`); a server would hold that
            of its largest request.

    Raises:
        InputError: If PyTorch cannot use the device.
    """
    if device == "auto":
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        device = accelerator.type if accelerator else "cpu"
    try:
        torch.zeros(1, device=device).item()  # meta has no values
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {device!r} cannot be used: {str(error).splitlines()[0]}") from error
    if keep_memory and torch.device(device).type == "cpu":
        keep_freed_memory()
    settings = init_distributed_device_so(device)
    process = Process(torch.device(settings["device"]), int(settings["global_rank"]), int(settings["world_size"]))
    if process.rank != 0:
        logging.getLogger("shuffle_attention").setLevel(logging.ERROR)
    try:
        yield process
    except (InputError, OSError) as error:
        error.joined = True  # pyright: ignore[reportAttributeAccessIssue] - any process may be the only one with it
        raise
    finally:
        if process.world_size > 1:
            distributed.destroy_process_group()


def keep_freed_memory() -> None:
    """Let glibc keep the memory that is freed for what is allocated next; another C library does as before.

    glibc may give the maps of a training step back to the system, and the next step then waits for the same pages to be
    cleared. Variables of its own (``GLIBC_TUNABLES``, ``MALLOC_...``) are left to decide.

    Source: mallopt(3), M_MMAP_THRESHOLD and M_TRIM_THRESHOLD.
    """
    chosen = any(name == "GLIBC_TUNABLES" or name.startswith("MALLOC_") for name in os.environ)
    if platform.libc_ver()[0] == "glibc" and not chosen:
        library = ctypes.CDLL(None)
        for threshold in (-3, -1):  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
            library.mallopt(threshold, 2**31 - 1)


def require_one_process(command: str) -> None:
    """Raise InputError if torchrun started several processes for a command that does not divide its work."""
    count = os.environ.get("WORLD_SIZE", "1")
    if count != "1":
        raise InputError(f"{command} runs in one process, and torchrun started {count}: start it without torchrun")


def autocast(process: Process, precision: str) -> AbstractContextManager:
    """Return the context in which a network computes in ``precision``: fp32, bf16 or fp16."""
    if precision not in PRECISIONS:
        return nullcontext()
    return torch.autocast(process.device.type, PRECISIONS[precision])
