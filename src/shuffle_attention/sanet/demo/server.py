"""The page's server: an address to listen on, the page while a model is trained, and Gradio without telemetry."""

import logging
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ...errors import InputError, require_extra
from ..recipes.recipe import load_recipe
from ..report.html import render_part
from ..training.run_folder import RunFolder

_PORTS = range(7860, 7960)
_CONNECTIONS = 900  # at once; a process may have 1,024 files open
_HEADERS = 2**15  # bytes of a request's headers


@contextmanager
def listen(host: str, port: int | None) -> Iterator[socket.socket]:
    """Yield a socket that listens on a host, by default on the first free port from 7860 on.

    Raises:
        InputError: If the address cannot be listened on.
    """
    for candidate in _PORTS if port is None else [port]:
        with suppress(OSError):
            listener = socket.create_server((host, candidate), backlog=256)
            break
    else:
        where = f"port {port}; another process may have it" if port is not None else f"any port from {_PORTS[0]} on"
        raise InputError(f"the page cannot listen on {host} at {where}")
    with listener:
        yield listener


@contextmanager
def gradio_environment(uploads: Path) -> Iterator[None]:
    """Import Gradio without telemetry, with a folder for its files; within the block it works there.

    Raises:
        InputError: If Gradio is not installed.
    """
    # Gradio and its dependencies read these when they are imported, and httpx stops at proxies that it does not know.
    # The page contacts nobody, so that no proxy is needed.
    proxies = [name for name in os.environ if name.lower().endswith("_proxy")]
    own = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1", "GRADIO_TEMP_DIR": str(uploads)}
    with _environment(own):
        require_extra("gradio", extra="demo")
        with _environment(dict.fromkeys(proxies)):
            import gradio  # noqa: F401
        yield


@contextmanager
def _environment(changes: dict[str, Any]) -> Iterator[None]:
    """Set environment variables, or remove those of None, until the end of the block."""
    before = {name: os.environ.get(name) for name in changes}
    try:
        _set(changes)
        yield
    finally:
        _set(before)


def _set(values: dict[str, Any]) -> None:
    for name, value in values.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


@contextmanager
def serve(app: Any, listener: socket.socket, tick: Any = None) -> Iterator[None]:
    """Serve an application in a thread until the end of the block; the socket goes on listening.

    Args:
        app: An ASGI application.
        listener: Socket that listens.
        tick: Function to call every 20 seconds.
    """
    import uvicorn

    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # which logs every malformed upload

    async def on_tick() -> None:
        if tick is not None:
            tick()

    config = uvicorn.Config(
        app,
        http="h11",
        ws="none",
        loop="asyncio",
        log_config=None,
        log_level="critical",
        proxy_headers=False,
        server_header=False,
        limit_concurrency=_CONNECTIONS,
        h11_max_incomplete_event_size=_HEADERS,
        timeout_graceful_shutdown=1,  # seconds for visitors who have not left
        callback_notify=on_tick,
        timeout_notify=20,
    )
    server, before = uvicorn.Server(config), set(threading.enumerate())
    thread = threading.Thread(target=server.run, args=([listener.dup()],), daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join()
        # The process may crash if it ends while threads still compute.
        for thread in set(threading.enumerate()) - before:
            thread.join(timeout=5)


class Waiting:
    """The page while the first model is being trained: how many epochs are done.

    Args:
        folder: Folder of the run.
    """

    def __init__(self, folder: Path):
        self.metrics, self.total = RunFolder(folder).metrics, load_recipe("digits").epochs

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        done = max(0, len(self.metrics.read_text().splitlines()) - 1) if self.metrics.exists() else 0
        body = render_part("demo.html", "waiting", done, self.total).encode()
        headers = [(b"content-type", b"text/html; charset=utf-8"), (b"cache-control", b"no-store")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})
