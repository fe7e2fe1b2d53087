"""Debian's Chromium without a window, driven by Playwright."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
# It runs as root and without a screen, and must not contact other hosts at its start.
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage"
).split()
PATIENCE = 60_000  # milliseconds that a busy machine may take for an answer


def require(*modules: str) -> None:
    """Skip a test without Chromium, Playwright and further modules; under CI, fail it."""
    missing = [] if CHROMIUM else ["chromium (apt-get install chromium)"]
    for module in ("playwright", *modules):
        try:
            __import__(module)
        except ImportError:
            missing.append(f"{module} (pip install {module})")
    if missing:
        absent(", ".join(missing))


def absent(what: str) -> None:
    """Skip a test that needs something which is not here; under CI, fail it."""
    (pytest.fail if os.environ.get("CI") else pytest.skip)(f"a browser test needs {what}")


@contextmanager
def chromium() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()
