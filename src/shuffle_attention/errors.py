"""Errors caused by invalid input; the command prints their message without a traceback."""

import difflib
import importlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

BAD_INPUT = 2  # exit code of the command line


class InputError(ValueError):
    """Input that cannot be used; the message names what was received and what would work.

    The command line prints only the message and exits with ``BAD_INPUT``.
    """


class DataError(InputError):
    """Images or labels that cannot be used for training or evaluation."""


@contextmanager
def asked_for(**received: Any) -> Iterator[None]:
    """Turn a library's error about its arguments into an ``InputError`` that names the settings they came from."""
    try:
        yield
    except InputError:
        raise
    except (ArithmeticError, AssertionError, AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        settings = ", ".join(f"{name}={value!r}" for name, value in received.items())
        raise InputError(f"{settings} cannot be used: {str(error) or type(error).__name__}") from error


def unknown(kind: str, name: object, known: Iterable[str]) -> InputError:
    """Return the error for a name that does not exist; its message has the closest known names, or all of a few."""
    names = list(known)
    close = difflib.get_close_matches(str(name), names, n=3)
    hints = [f"did you mean {' or '.join(close)}?"] if close else []
    if not close or len(names) <= 20:
        hints.append(f"there are {listed(names, 20)}")
    return InputError(f"no {kind} {name!r}; {' '.join(hints)}")


def listed(names: Sequence[str], most: int = 5) -> str:
    """Return the first names separated by commas, with the number of those left out."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def require_extra(module: str, *, extra: str, note: str = "") -> ModuleType:
    """Import a module that an optional extra of this package brings.

    Raises:
        InputError: If it is not installed; the message names the extra.
    """
    package = module.partition(".")[0]
    try:
        importlib.import_module(package)
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        message = f"{package} is not installed: pip install 'shuffle-attention[{extra}]'{note}"
        raise InputError(message) from error
