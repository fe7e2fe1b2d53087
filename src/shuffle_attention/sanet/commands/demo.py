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

    checkpoint: list[str] = option(
        [],
        "checkpoints of sanet train or sanet detect train, published ones, or deployed files",
        metavar="FILE",
        nargs="+",
    )
    browser: bool = option(True, "open the page in a browser")
    port: int | None = option(None, "port; by default the first free one from 7860 on", minimum=1, maximum=65535)
    host: str = option("127.0.0.1", "address to listen on")
    allow_host: list[str] = option(
        [], "further names that the page is served under, such as that of a reverse proxy", metavar="NAME", nargs="+"
    )
    show_examples: bool | None = option(
        None, "show validation images of the models' data; by default if only this machine reaches the page"
    )
    device: str = option("auto", "cpu, cuda, mps, ...")

    def run(self) -> int:
        """Serve the page until the command is stopped."""
        from ..console import console
        from ..demo.guard import Guard, Hosts
        from ..demo.predictors import examples_for, open_networks
        from ..demo.server import Waiting, gradio_environment, listen, serve
        from ..demo.uploads import Uploads, upload_folder
        from ..device import open_process
        from ..training.signals import Interrupted, stop_signals_raised

        try:
            socket.getaddrinfo(self.host, self.port, socket.AF_INET)
        except OSError as error:
            raise InputError(
                f"--host {self.host} is neither an IPv4 address of this machine nor a name of one"
            ) from error
        hosts = Hosts(self.host, self.allow_host)
        with (
            open_process(self.device, keep_memory=False) as process,
            upload_folder() as folder,
            gradio_environment(folder),
        ):
            finished = self.checkpoint or ([str(FOLDER / "best.pt")] if is_finished(FOLDER) else [])
            networks = open_networks(finished, process, self.device)
            try:
                with stop_signals_raised(), listen(self.host, self.port) as listener:
                    name = "localhost" if hosts.everywhere else self.host
                    address = f"http://{name}:{listener.getsockname()[1]}/"
                    if hosts.exposed:
                        console.print("everyone who can reach the page can use it: there is no password")
                    if not finished:
                        waiting = Guard(Waiting(FOLDER), hosts, Uploads(folder), lambda _: False)
                        with serve(waiting, listener):
                            self._announce(address)
                            console.print(
                                f"there is no {FOLDER / 'best.pt'} yet; training it on handwritten digits first"
                            )
                            train_digits(FOLDER, process)
                            networks = open_networks([FOLDER / "best.pt"], process)
                    from ..demo.page import Page

                    # A checkpoint from elsewhere may name any folder of this machine.
                    shown = not hosts.exposed if self.show_examples is None else self.show_examples
                    page = Page(networks, examples_for(networks) if shown else [])
                    uploads = Uploads(folder)
                    with serve(Guard(page.app, hosts, uploads, page.accepts), listener, uploads.remove_old):
                        if finished:
                            self._announce(address)
                        else:
                            console.print(f"the model is ready; the page at {address} shows it")
                        threading.Event().wait()
            except Interrupted as interrupted:
                if interrupted.where:
                    console.print(f"{interrupted.where}. The next sanet demo goes on from there")
                return interrupted.exit_code
        return 0

    def _announce(self, address: str) -> None:
        from ..console import console

        console.print(f"the page is at {address}, until Ctrl-C")
        if self.browser:
            webbrowser.open(address)


def is_finished(folder: Path) -> bool:
    """Return whether a folder has the model of a finished run, or a model alone."""
    from ..training.run_folder import RunFolder

    files = RunFolder(folder)
    return files.best.exists() and (files.summary.exists() or not files.last.exists())


def train_digits(folder: Path, process: Process, recipe: Recipe | None = None) -> None:
    """Train the model that is shown if none is named, or continue a run; by default with the recipe ``digits``.

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
