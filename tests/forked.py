"""Commands in separate processes, forked from one that has imported the package: seconds sooner than by Python."""

import multiprocessing
import os
import runpy
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shuffle_attention.sanet.cli import main
from shuffle_attention.sanet.training.progress import Progress

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "shuffle_attention.sanet.report.run",
        "shuffle_attention.sanet.tasks.classification.task",
        "shuffle_attention.sanet.tasks.detection.task",
        "shuffle_attention.sanet.training.loop",
        "torch.distributed.run",
    ]
)


class Forked:
    """A function that runs in a separate process and session.

    Args:
        function: A function of a module; its result is the exit code.
        arguments: Its arguments.
        output: File or terminal for what it prints.
        environment: Variables of the environment to set.
    """

    def __init__(self, function: Callable[..., int], *arguments: Any, output: Path, **environment: str):
        self.output = output
        self.process = CONTEXT.Process(target=_run, args=(function, arguments, output, environment))
        self.process.start()
        assert self.process.pid is not None
        self.pid: int = self.process.pid

    def wait(self, timeout: float = 300) -> int:
        """Return the exit code, minus the number of the signal that ended the process."""
        self.process.join(timeout)
        assert self.process.exitcode is not None, f"still running after {timeout} s: {self.printed()}"
        return self.process.exitcode

    def wait_for(self, path: Path, text: str = "", timeout: float = 300) -> None:
        """Wait until the process has written a file, or a text to it."""
        deadline = time.monotonic() + timeout
        while not path.exists() or (text and text not in path.read_text()):
            assert self.process.is_alive(), self.printed()
            assert time.monotonic() < deadline
            time.sleep(0.005)

    def printed(self) -> str:
        """Return what the process has printed."""
        return self.output.read_text()


def _run(function: Callable[..., int], arguments: tuple, output: Path, environment: dict[str, str]) -> None:
    os.setsid()
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_NOCTTY, 0o600)
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    os.close(descriptor)
    os.environ.update(environment)
    sys.exit(function(*arguments))


def slow_main(arguments: list[str]) -> int:
    """Run the command with a pause at each step of a training, in which signals arrive even on a busy machine."""
    step = Progress.step

    def paused(self: Progress, *given: Any) -> None:
        time.sleep(0.1)
        step(self, *given)

    Progress.step = paused
    return main(arguments)


def start_sanet(*arguments: object, output: Path, **environment: str) -> Forked:
    """Start the command."""
    return Forked(slow_main, [*map(str, arguments)], output=output, **environment)


def start_program(path: Path, *, output: Path, **environment: str) -> Forked:
    """Start a program of the folder ``programs``."""
    return Forked(_program, str(path), output=output, **environment)


def _program(path: str) -> int:
    runpy.run_path(path, run_name="__main__")
    return 0


def start_torchrun(*arguments: object, output: Path, workers: Path, restarts: int = 0) -> Forked:
    """Start the command in two processes under torchrun's agent; each writes its number to ``workers/RANK``."""
    workers.mkdir()
    options = (
        f"--rdzv-backend c10d --rdzv-endpoint localhost:0 --rdzv-id {os.getpid()} --nproc-per-node 2 "
        f"--max-restarts {restarts} --start-method fork -m shuffle_attention"
    )
    # Otherwise a restarted process can read the addresses that those before it left in torchrun's store
    # (pytorch/pytorch issue 135712).
    environment = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "WORKERS": str(workers)}
    return Forked(_agent, [*options.split(), *map(str, arguments)], output=output, **environment)


def _agent(arguments: list[str]) -> int:
    from torch.distributed.run import config_from_args, elastic_launch, get_args_parser

    parsed = get_args_parser().parse_args(arguments)
    elastic_launch(config_from_args(parsed)[0], _worker)(parsed.training_script_args)
    return 0


def _worker(arguments: list[str]) -> None:
    Path(os.environ["WORKERS"], os.environ["RANK"]).write_text(str(os.getpid()))
    if code := slow_main(arguments):
        sys.exit(code)
