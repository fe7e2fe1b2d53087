"""The command ``sanet demo``: the networks, the server, and the end of both."""

import socket
import threading
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from ...checkpoints import read_checkpoint
from ...errors import InputError
from ..console import console
from ..demo.examples import kinds_of
from ..demo.predictors import open_networks
from ..demo.server import serve, temporary_uploads, training_status
from ..device import Process, open_process
from ..network import recipe_of
from ..recipes.recipe import Recipe, load_recipe
from ..tasks.classification.task import Classification
from ..training.loop import Interrupted, train
from ..training.run_folder import RunFolder
from ..training.signals import StopSignal, stop_signals_raised

FOLDER = Path("runs/demo")  # that of `make demo`


def demo_command(checkpoints: Sequence[str], *, host: str, port: int | None, device: str, browser: bool) -> int:
    """Runs ``sanet demo`` until it is stopped, and returns its exit code."""
    if port is not None and not 1 <= port <= 65535:
        raise InputError(f"--port must be from 1 to 65535, got {port}")
    try:
        socket.getaddrinfo(host, port, socket.AF_INET)
    except OSError as error:
        raise InputError(f"--host {host} is no IPv4 address of this machine, and no name of one") from error
    with open_process(device) as process, temporary_uploads(host) as uploads:
        from ..demo.page import PageState

        finished = checkpoints or ([str(FOLDER / "best.pt")] if is_finished(FOLDER) else [])
        shelf = PageState(open_networks(finished, process))
        shelf.examples = kinds_of(shelf.networks) if finished else {"classifier"}
        try:
            with stop_signals_raised(), serve(shelf, host, port, uploads) as address:
                console.print(f"the page is at {address}, until Ctrl-C")
                if browser:
                    webbrowser.open(address)
                if not finished:
                    shelf.status = "The network is being trained on handwritten digits; this takes a minute or two."
                    console.print(f"there is no {FOLDER / 'best.pt'} yet; training it on handwritten digits first")
                    with training_status(shelf, FOLDER):
                        train_digits(FOLDER, process)
                    shelf.networks = open_networks([FOLDER / "best.pt"], process)
                    console.print(f"the network is ready; the page at {address} shows it")
                threading.Event().wait()
        except Interrupted as interrupted:
            console.print(f"{interrupted.where}. The next sanet demo goes on from there")
            return interrupted.exit_code
        except StopSignal as stop:
            return stop.exit_code
    return 0


def is_finished(folder: Path) -> bool:
    """Returns whether a folder has the network of a finished run, or a network alone."""
    files = RunFolder(folder)
    return files.best.exists() and (files.summary.exists() or not files.last.exists())


def train_digits(folder: Path, process: Process, recipe: Recipe | None = None) -> None:
    """Trains the network that is shown where none is named, or goes on with a run that was stopped.

    Args:
        folder: Folder of the run.
        process: Where to train.
        recipe: Settings; by default those of ``digits``.

    Raises:
        InputError: If the folder cannot be used.
        Interrupted: If a signal to stop arrived; the run is then saved.
    """
    files = RunFolder(folder)
    resume = files.last.exists()
    if resume:
        recipe = recipe_of(read_checkpoint(files.last), files.last)[0]
    train(recipe or load_recipe("digits").replaced(workers=0), folder, process, task=Classification, resume=resume)
