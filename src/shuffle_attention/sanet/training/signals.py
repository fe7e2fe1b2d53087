"""Signals as a wish to stop: in training the first is granted at the next step, the second at once."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch

from ..device import Process


def stop_signals() -> list[signal.Signals]:
    """Returns SIGTERM, SIGINT and, where the terminal's end is not to be ignored (nohup), SIGHUP."""
    numbers = [signal.SIGTERM, signal.SIGINT]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    return numbers


def _silence_closed_terminal(number: int) -> None:
    """Where the terminal has ended, what is still said goes nowhere; it would fail, and end what is to be saved."""
    if signal.Signals(number).name != "SIGHUP":
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        try:
            os.write(descriptor, b"")
        except OSError:
            os.dup2(nowhere, descriptor)
    os.close(nowhere)


class StopRequest:
    """While entered, the first of the signals is noted instead of ending the process; a second one ends it.

    Under torchrun a Ctrl-C arrives twice, from the terminal and from torchrun, so that there a second
    one counts only when a second has passed. The end of a terminal may be told twice too, by shell and system,
    and never ends it at once.

    Attributes:
        signal: The signal that was received, or None.
    """

    def __init__(self, process: Process):
        self.process = process
        self.signal: signal.Signals | None = None
        self._since = 0.0
        self._before = {}

    def __enter__(self) -> "StopRequest":
        for number in stop_signals():
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        _silence_closed_terminal(number)
        if self.signal is None:
            self.signal = signal.Signals(number)
            self._since = time.monotonic()
        elif signal.Signals(number).name != "SIGHUP" and (
            self.process.world_size == 1 or time.monotonic() - self._since > 1
        ):
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def agreed(self) -> bool:
        """Whether any process was asked to stop; all call it together, so that all stop at the same step."""
        if self.process.world_size == 1:
            return self.signal is not None
        asked = torch.tensor([self.signal or 0], dtype=torch.int32, device=self.process.device)
        torch.distributed.all_reduce(asked, op=torch.distributed.ReduceOp.MAX)
        if int(asked):
            self.signal = self.signal or signal.Signals(int(asked))
        return bool(asked)


class StopSignal(BaseException):
    """A signal to stop between the runs of a command that trains several.

    Attributes:
        exit_code: 128 and the number of the signal, as a shell reports it.
    """

    def __init__(self, number: int):
        self.exit_code = 128 + number
        super().__init__(f"stopped by {signal.Signals(number).name}")


@contextmanager
def stop_signals_raised() -> Iterator[None]:
    """Raises StopSignal for the signals wherever no :class:`StopRequest` is entered."""

    def stop(number: int, frame: FrameType | None) -> None:
        _silence_closed_terminal(number)
        raise StopSignal(number)

    before = {number: signal.signal(number, stop) for number in stop_signals()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
