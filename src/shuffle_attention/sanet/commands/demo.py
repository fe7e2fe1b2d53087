"""The command ``sanet demo``: the networks, the server, and the end of both."""

import ipaddress
import logging
import os
import socket
import tempfile
import threading
import webbrowser
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...checkpoints import read_checkpoint
from ...errors import InputError
from ..console import console
from ..demo.examples import kinds_of
from ..demo.predictors import open_networks
from ..demo.uploads import MAX_BYTES
from ..device import Process, open_process
from ..network import recipe_of
from ..recipes.recipe import Recipe, load_recipe
from ..tasks.classification.task import Classification
from ..training.loop import Interrupted, train
from ..training.run_folder import RunFolder
from ..training.signals import StopSignal, stop_signals_raised

FOLDER = Path("runs/demo")  # that of `make demo`
_SESSIONS = 100  # visitors whose images are kept in memory at once


def demo_command(checkpoints: Sequence[str], *, host: str, port: int | None, device: str, browser: bool) -> int:
    """Runs ``sanet demo`` until it is stopped, and returns its exit code."""
    if port is not None and not 1 <= port <= 65535:
        raise InputError(f"--port must be from 1 to 65535, got {port}")
    try:
        socket.getaddrinfo(host, port, socket.AF_INET)
    except OSError as error:
        raise InputError(f"--host {host} is no IPv4 address of this machine, and no name of one") from error
    with open_process(device) as process, _gradio(host) as uploads:
        from ..demo.page import PageState

        finished = checkpoints or ([str(FOLDER / "best.pt")] if is_finished(FOLDER) else [])
        shelf = PageState(open_networks(finished, process))
        shelf.examples = kinds_of(shelf.networks) if finished else {"classifier"}
        try:
            with stop_signals_raised(), _served(shelf, host, port, uploads) as address:
                console.print(f"the page is at {address}, until Ctrl-C")
                if browser:
                    webbrowser.open(address)
                if not finished:
                    shelf.status = "The network is being trained on handwritten digits; this takes a minute or two."
                    console.print(f"there is no {FOLDER / 'best.pt'} yet; training it on handwritten digits first")
                    with _told(shelf, FOLDER):
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
    train(recipe or load_recipe("digits").replaced(workers=0), folder, process, problem=Classification, resume=resume)


@contextmanager
def _told(shelf: Any, folder: Path):
    """Tells those who wait on the page how far the training is."""
    done = threading.Event()
    metrics, total = RunFolder(folder).metrics, load_recipe("digits").epochs

    def tell() -> None:
        while not done.wait(1):
            epochs = max(0, len(metrics.read_text().splitlines()) - 1) if metrics.exists() else 0
            shelf.status = f"The network is being trained on handwritten digits: {epochs} of {total} epochs are done."

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield
    finally:
        done.set()
        teller.join()


@contextmanager
def _gradio(host: str):
    """Gradio without telemetry, and the folder for uploads, which goes when the command ends.

    It asks its own page whether it is there, which must not go through a proxy.
    """
    before = dict(os.environ)
    with tempfile.TemporaryDirectory(prefix="sanet-demo-", ignore_cleanup_errors=True) as folder:
        direct = ",".join(
            filter(None, [before.get("no_proxy") or before.get("NO_PROXY"), host, "localhost", "127.0.0.1"])
        )
        # Gradio and what it imports read these when they are imported.
        changed = {
            "GRADIO_ANALYTICS_ENABLED": "False",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "GRADIO_TEMP_DIR": folder,
            "NO_PROXY": direct,
            "no_proxy": direct,
        }
        os.environ |= changed
        try:
            import gradio  # noqa: F401
        except ImportError as error:
            raise InputError(
                "the page needs Gradio, which is not installed: pip install 'shuffle-attention[demo]'"
            ) from error
        try:
            yield Path(folder)
        finally:
            for name in changed:
                os.environ.pop(name)
                if name in before:
                    os.environ[name] = before[name]


@contextmanager
def _served(shelf: Any, host: str, port: int | None, uploads: Path):
    """Serves the page in a thread; the address that it is at."""
    from starlette.middleware import Middleware

    from ..demo.html import STYLE
    from ..demo.page import build_page
    from ..demo.security import OwnOriginOnly, UploadsOnly

    page, before = build_page(shelf), set(threading.enumerate())
    try:
        _, address, _ = page.launch(
            server_name=host,
            server_port=port,
            share=False,
            inbrowser=False,
            prevent_thread_lock=True,
            quiet=True,
            max_file_size=MAX_BYTES,
            state_session_capacity=_SESSIONS,
            run_history=False,
            footer_links=[],
            ssr_mode=False,
            mcp_server=False,
            pwa=False,
            enable_monitoring=False,
            css=STYLE,
            app_kwargs={
                "middleware": [Middleware(OwnOriginOnly), Middleware(UploadsOnly, uploads)],
                "docs_url": None,
                "redoc_url": None,
            },
        )
    except OSError as error:
        where = f"port {port}; another process may have it" if port is not None else "any port from 7860 on"
        raise InputError(f"the page cannot listen on {host} at {where}") from error
    if not _is_loopback(host):
        console.print(f"whoever reaches {host} can use the page: there is no password")
    try:
        yield address
    finally:
        # Gradio gives its thread up where visitors have not left in five seconds, and the process may end badly while
        # it runs. Here they are sent away after one, of which uvicorn would tell, and what they wait for is computed.
        # The threads that it was computed in are then told to leave, which nobody waits for either.
        page.server.config.timeout_graceful_shutdown = 1
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        page.close(verbose=False)
        page.server.thread.join()
        for thread in set(threading.enumerate()) - before:
            thread.join(timeout=5)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
