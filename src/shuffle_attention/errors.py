"""Errors caused by invalid input; the command prints their message without a traceback."""

import difflib
import importlib.util
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
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


def unknown(kind: str, name: object, known: Iterable[str], *, of: str = "") -> InputError:
    """Return the error for a name that does not exist; its message has the closest known names, or all of a few.

    Args:
        kind: Kind of the name, such as ``model``.
        name: The name that was received.
        known: Names that exist.
        of: Owner of the names, if there are several.
    """
    names = list(known)
    close = difflib.get_close_matches(str(name), names, n=3)
    hints = [f"did you mean {' or '.join(close)}?"] if close else []
    if not close or len(names) <= 20:
        hints.append(f"there are {listed(names, 20)}")
    return InputError(f"{f'{of} has ' if of else ''}no {kind} {name!r}; {' '.join(hints)}")


def listed(names: Sequence[str], most: int = 5) -> str:
    """Return the first names separated by commas, with the number of those left out."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def require_extra(*modules: str, extra: str, note: str = "") -> None:
    """Raise InputError, which names the optional extra that brings them, if any of these modules is not installed."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise InputError(f"{', '.join(missing)} {verb} not installed: pip install 'shuffle-attention[{extra}]'{note}")
