"""The documentation site: it builds without a warning, asks no other host for anything, and names every command."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from shuffle_attention.sanet.parser import collect

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "COLUMNS": "100", "PYTHONPATH": str(ROOT / "src")}
    built = subprocess.run(command, cwd=ROOT, env=quiet, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr[-3000:]
    return folder


def test_no_page_asks_another_host_for_anything(site):
    for page in site.rglob("*.html"):
        html = page.read_text(encoding="utf-8")
        parts = re.findall(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"?([^\s\">]+)", html)
        parts += re.findall(r"<link\b(?![^>]*\brel=\"?canonical)[^>]*\bhref=\"?([^\s\">]+)", html)
        assert not [part for part in parts if re.match(r"(https?:)?//", part)], page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*['\"]?(https?:)?//", sheet.read_text(encoding="utf-8")), sheet


def test_the_reference_has_every_command_and_the_layer(site):
    commands = (site / "reference/command/index.html").read_text(encoding="utf-8")
    assert all(f"usage: sanet {name} " in commands for name in collect())
    python = (site / "reference/python/index.html").read_text(encoding="utf-8")
    for name in ("shuffle_attention.attention.shuffle.ShuffleAttention", "shuffle_attention.deploy.api.export"):
        assert f'id="{name}"' in python or f"id={name}" in python
    assert ":func:" not in python


def test_every_page_of_the_guides_is_in_the_site(site):
    for page in (ROOT / "docs").rglob("*.md"):
        assert (site / page.relative_to(ROOT / "docs").with_suffix("") / "index.html").exists(), page.name
    assert ">Two commands" in (site / "index.html").read_text(encoding="utf-8")
