"""Times of functions measured side by side."""

import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Times:
    """Seconds per call in each repetition, in the order of measurement."""

    seconds: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def over(self, other: "Times") -> tuple[float, float, float]:
        """Return median, lower and upper quartile of the ratios to ``other``, each taken within one repetition.

        With fewer than three repetitions the quartiles are the smallest and the largest ratio.
        """
        ratios = [a / b for a, b in zip(self.seconds, other.seconds, strict=True)]
        if len(ratios) < 3:  # quartiles of two would lie beyond them
            return statistics.median(ratios), min(ratios), max(ratios)
        low, middle, high = statistics.quantiles(ratios, n=4)
        return middle, low, high


def interleaved(functions: dict[str, Callable[[], object]], repetitions: int, least: float = 2e-3) -> dict[str, Times]:
    """Return the times of each function, all called once in every repetition, in an order drawn for each.

    Other load on the machine then slows all of them alike, and so does the state that one leaves to the next in caches
    and the allocator: their ratios are reliable where the times themselves are not.

    Args:
        functions: What to time, by name.
        repetitions: Number of repetitions.
        least: Seconds that a function is called for, over and over, in one repetition. With 0 it is called once, after
            one call to warm up.
    """
    calls = dict.fromkeys(functions, 1)
    for name, function in functions.items():
        function()
        if least:
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
    """Block until a device has finished its queued work; a CPU always has."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
