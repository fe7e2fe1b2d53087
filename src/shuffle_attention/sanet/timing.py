"""Times of functions measured side by side."""

import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Times:
    """Seconds a call took in each repetition, in the order they were taken."""

    seconds: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def over(self, other: "Times") -> tuple[float, float, float]:
        """Median and quartiles of the ratios to ``other``, each taken within one repetition; the ends of one or two."""
        ratios = [a / b for a, b in zip(self.seconds, other.seconds, strict=True)]
        if len(ratios) < 3:  # quartiles of two would lie beyond them
            return statistics.median(ratios), min(ratios), max(ratios)
        low, middle, high = statistics.quantiles(ratios, n=4)
        return middle, low, high


def interleaved(functions: dict[str, Callable[[], object]], repetitions: int, least: float = 2e-3) -> dict[str, Times]:
    """Returns the times of each function, one after the other in every repetition, in an order drawn for each.

    What else the machine does then falls on all of them alike, and so does what one leaves to the next, in caches and
    in the allocator: their ratios hold where the times themselves do not. A repetition calls a function as often as
    fills ``least`` seconds.
    """
    calls = {}
    for name, function in functions.items():
        function()
        function()
        start = time.perf_counter()
        function()
        calls[name] = max(1, round(least / (time.perf_counter() - start)))
    seconds = {name: [] for name in functions}
    order = random.Random(0)
    for _ in range(repetitions):
        for name, function in order.sample(list(functions.items()), len(functions)):
            start = time.perf_counter()
            for _ in range(calls[name]):
                function()
            seconds[name].append((time.perf_counter() - start) / calls[name])
    return {name: Times(values) for name, values in seconds.items()}


def wait_for(device: torch.device) -> None:
    """Waits until a device has done what it was given; the CPU has when a call returns."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
