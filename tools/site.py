"""Hooks of the documentation site: start page and notebooks from outside docs, a generated reference, and formulas."""

import importlib
import inspect
import posixpath
import re
from html import unescape
from pathlib import Path
from types import ModuleType
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files
from nbconvert import MarkdownExporter

from shuffle_attention.sanet.parser import Parser, collect

ROOT = Path(__file__).parents[1]
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
LINK = re.compile(r"\[([^\]]*)\]\((?!\w+:|#)([^)#\s]+)(#[^)\s]*)?\)")
# The public names of each module, in the order in which a reader meets them.
MODULES = {
    "shuffle_attention": "The layer, and attention in other models",
    "shuffle_attention.attention": "Attention layers",
    "shuffle_attention.models": "Networks",
    "shuffle_attention.models.detectors": "Detectors",
    "shuffle_attention.deploy": "Deployment",
    "shuffle_attention.explain": "Explanation",
    "shuffle_attention.checkpoints": "Checkpoints",
    "shuffle_attention.errors": "Errors",
}


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are not files of ``docs``, and the files outside of it that pages link to."""
    pages = {"index.md": (ROOT / "README.md").read_text(encoding="utf-8")}
    pages |= {"reference/python.md": _python(), "reference/command.md": _command()}
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        text, resources = MarkdownExporter().from_filename(str(notebook))
        for name, image in resources["outputs"].items():
            text = text.replace(f"({name})", f"({notebook.stem}_{name})")
            files.append(File.generated(config, f"notebooks/{notebook.stem}_{name}", content=image))
        pages[f"notebooks/{notebook.stem}.md"] = text
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for _, link, _ in LINK.findall(page.read_text(encoding="utf-8")):
            target = (page.parent / link).resolve()
            name = target.relative_to(ROOT).as_posix()
            known = name.startswith(("docs/", "notebooks/")) or name == "README.md" or name in files.src_uris
            if target.is_file() and not known:
                files.append(File.generated(config, name, abs_src_path=str(target)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Let links of the repository lead to where the site has their targets; a link to a folder becomes text."""
    if page.file.src_uri.startswith(("reference/", "notebooks/")):
        return markdown
    source = ROOT / ("README.md" if page.file.src_uri == "index.md" else f"docs/{page.file.src_uri}")

    def moved(link: re.Match[str]) -> str:
        text, path, anchor = link.groups()
        target = (source.parent / path).resolve()
        name = target.relative_to(ROOT).as_posix()
        if target.is_dir():
            return f"{text} (`{name}`)"
        name = "index.md" if name == "README.md" else name.removeprefix("docs/").replace(".ipynb", ".md")
        return f"[{text}]({posixpath.relpath(name, posixpath.dirname(page.file.src_uri) or '.')}{anchor or ''})"

    return LINK.sub(moved, markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Show formulas as MathML, and the names that docstrings refer to by Sphinx's roles as code."""
    html = FORMULA.sub(_mathml, html)
    return re.sub(r":(?:func|class|meth|mod|attr):<code>[~.]*", "<code>", html)


def _mathml(formula: re.Match[str]) -> str:
    if formula[1] == "span":
        return convert(unescape(formula[2]))
    return f'<div class="formula">{convert(unescape(formula[2]), display="block")}</div>'


def _python() -> str:
    parts, seen = ["# Python", "", "The public names of the library, by module."], set()
    for name, title in MODULES.items():
        module = importlib.import_module(name)
        about = (inspect.getdoc(module) or "").split("\n")[0]
        parts += ["", f"## {title}", "", f"`{name}`: {about}"]
        for each in module.__all__ if hasattr(module, "__all__") else _own(module):
            value = getattr(module, each)
            if (inspect.isclass(value) or inspect.isfunction(value)) and value not in seen:
                seen.add(value)
                parts += ["", f"::: {value.__module__}.{value.__qualname__}"]
    return "\n".join(parts)


def _own(module: ModuleType) -> list[str]:
    """Return the public names that a module without ``__all__`` defines."""
    return [n for n, v in vars(module).items() if getattr(v, "__module__", "") == module.__name__ and n[0] != "_"]


def _command() -> str:
    parts = ["# Command line", "", "What `--help` prints of each command."]
    for name, command in collect().items():
        help_text = Parser(command).format_help().strip()
        parts += ["", f"## sanet {name}", "", "```text", help_text, "```"]
    return "\n".join(parts)
