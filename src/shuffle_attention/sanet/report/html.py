"""A report as a file: templates filled in, everything embedded, nothing written by halves."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from ...files import write_text

logger = logging.getLogger(__name__)


@cache
def _templates() -> Environment:
    """Names of classes and files are what users wrote: every value is escaped, and a missing one is an error."""
    return Environment(
        loader=PackageLoader("shuffle_attention.sanet.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def write_page(template: str, values: dict[str, Any], path: Path) -> None:
    """Writes a page whole or not at all.

    Args:
        template: A file of ``pages/templates``.
        values: What it lays out.
        path: HTML file to write.
    """
    # A file name may hold bytes that are no text, which UTF-8 cannot write.
    page = _templates().get_template(template).render(values)
    write_text(path, page.encode(errors="replace").decode())


@contextmanager
def log_failures(folder: Path) -> Iterator[None]:
    """Lets the report of what is finished fail with a warning: the figures are on disk, and count without it."""
    try:
        yield
    except KeyboardInterrupt:
        logger.warning("%s is finished, and its report was interrupted; sanet report %s writes it", folder, folder)
        raise
    except Exception as error:  # whatever it is, hours of training must not end as a failure for it
        reason = str(error) or type(error).__name__
        logger.warning("no report of %s could be written (%s); sanet report %s tries again", folder, reason, folder)
