"""The command ``sanet demo``."""

from __future__ import annotations

import socket
import threading
import webbrowser
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import InputError
from ..recipes.recipe import Recipe, load_recipe
from ..recipes.settings import option
from . import Command

if TYPE_CHECKING:
    from ..device import Process

FOLDER = Path("runs/demo")  # that of `make demo`


@dataclass(kw_only=True)
class Demo(Command):
    """Start a web page on this machine: drop an image, and see what models predict, attend to and detect.

    Without a checkpoint the model of runs/demo is shown, which `make demo` trains. If it is missing, it is trained
    first (handwritten digits, a minute or two).
    """

    name = "demo"
    summary = "look at models on a web page"

    checkpoint: list[str] = option([], "of sanet train, sanet detect train, or published", metavar="FILE", nargs="+")
    browser: bool = option(True, "open the page in a browser")
    port: int | None = option(None, "port; by default the first free one from 7860 on", minimum=1, maximum=65535)
    host: str = option("127.0.0.1", "address to listen on")
    device: str = option("auto", "cpu, cuda, mps, ...")

    def run(self) -> int:
        """Serve the page until the command is stopped."""
        from ..console import console
        from ..demo.predictors import kinds_of, open_networks
        from ..demo.server import serve, temporary_uploads, training_status
        from ..device import open_process
        from ..training.signals import Interrupted, stop_signals_raised

        host = self.host
        try:
            socket.getaddrinfo(host, self.port, socket.AF_INET)
        except OSError as error:
            raise InputError(f"--host {host} is neither an IPv4 address of this machine nor a name of one") from error
        with open_process(self.device) as process, temporary_uploads(host) as uploads:
            from ..demo.page import PageState

            finished = self.checkpoint or ([str(FOLDER / "best.pt")] if is_finished(FOLDER) else [])
            state = PageState(open_networks(finished, process))
            state.examples = kinds_of(state.networks) if finished else {"classifier"}
            try:
                with stop_signals_raised(), serve(state, host, self.port, uploads) as address:
                    console.print(f"the page is at {address}, until Ctrl-C")
                    if self.browser:
                        webbrowser.open(address)
                    if not finished:
                        state.status = "The model is being trained on handwritten digits; this takes a minute or two."
                        console.print(f"there is no {FOLDER / 'best.pt'} yet; training it on handwritten digits first")
                        with training_status(state, FOLDER):
                            train_digits(FOLDER, process)
                        state.networks = open_networks([FOLDER / "best.pt"], process)
                        console.print(f"the model is ready; the page at {address} shows it")
                    threading.Event().wait()
            except Interrupted as interrupted:
                if interrupted.where:
                    console.print(f"{interrupted.where}. The next sanet demo goes on from there")
                return interrupted.exit_code
        return 0


def is_finished(folder: Path) -> bool:
    """Return whether a folder has the model of a finished run, or a model alone."""
    from ..training.run_folder import RunFolder

    files = RunFolder(folder)
    return files.best.exists() and (files.summary.exists() or not files.last.exists())


def train_digits(folder: Path, process: Process, recipe: Recipe | None = None) -> None:
    """Train the model that is shown if none is named, or continue a run that was stopped.

    Args:
        folder: Folder of the run.
        process: Process to train in.
        recipe: Settings; by default those of ``digits``.

    Raises:
        InputError: If the folder cannot be used.
        Interrupted: If a signal to stop arrived; the run is then saved.
    """
    from ...checkpoints import read_checkpoint
    from ..network import recipe_of
    from ..tasks.classification.task import Classification
    from ..training.loop import train
    from ..training.run_folder import RunFolder

    files = RunFolder(folder)
    resume = files.last.exists()
    if resume:
        recipe = recipe_of(read_checkpoint(files.last), files.last)[0]
    train(recipe or load_recipe("digits").replaced(workers=0), folder, process, task=Classification, resume=resume)
