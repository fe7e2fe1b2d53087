"""The page's server: Gradio without telemetry, in a thread, with its folder for uploads."""

import ipaddress
import logging
import os
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...errors import InputError, require_extra
from ..console import console
from ..recipes.recipe import load_recipe
from ..training.run_folder import RunFolder
from .uploads import MAX_BYTES

_SESSIONS = 100  # visitors whose images are kept in memory at once


@contextmanager
def training_status(state: Any, folder: Path):
    """Show on the page how many epochs of the training are done, until the end of the block."""
    done = threading.Event()
    metrics, total = RunFolder(folder).metrics, load_recipe("digits").epochs

    def update() -> None:
        while not done.wait(1):
            epochs = max(0, len(metrics.read_text().splitlines()) - 1) if metrics.exists() else 0
            state.status = f"The model is being trained on handwritten digits: {epochs} of {total} epochs are done."

    updater = threading.Thread(target=update, daemon=True)
    updater.start()
    try:
        yield
    finally:
        done.set()
        updater.join()


@contextmanager
def temporary_uploads(host: str):
    """Import Gradio without telemetry, and yield its folder for uploads, which is removed at the end of the block.

    Gradio requests its own page to see whether it is up; that request must not go through a proxy.

    Raises:
        InputError: If Gradio is not installed.
    """
    before = dict(os.environ)
    with tempfile.TemporaryDirectory(prefix="sanet-demo-", ignore_cleanup_errors=True) as folder:
        direct = ",".join(
            filter(None, [before.get("no_proxy") or before.get("NO_PROXY"), host, "localhost", "127.0.0.1"])
        )
        # Gradio and its dependencies read these when they are imported.
        changed = {
            "GRADIO_ANALYTICS_ENABLED": "False",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "GRADIO_TEMP_DIR": folder,
            "NO_PROXY": direct,
            "no_proxy": direct,
        }
        os.environ |= changed
        try:
            require_extra("gradio", extra="demo")
            yield Path(folder)
        finally:
            for name in changed:
                os.environ.pop(name)
                if name in before:
                    os.environ[name] = before[name]


@contextmanager
def serve(state: Any, host: str, port: int | None, uploads: Path):
    """Serve the page in a thread until the end of the block, and yield its address.

    Raises:
        InputError: If the address cannot be listened on.
    """
    from starlette.middleware import Middleware

    from ..report.html import render_part
    from .page import build_page
    from .security import OwnOriginOnly, UploadsOnly

    page, before = build_page(state), set(threading.enumerate())
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
            css=render_part("demo.html", "style"),
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
        console.print(f"everyone who can reach {host} can use the page: there is no password")
    try:
        yield address
    finally:
        # Gradio abandons its thread if visitors have not left after five seconds, and the process may crash while that
        # thread runs. Here connections are closed after one second (uvicorn would log that), pending requests are
        # computed, and the threads that computed them are joined.
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
