"""Errors caused by invalid input; the command prints their message without a traceback."""

import difflib
import importlib.util
import reprlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

BAD_INPUT = 2  # exit code of the command line
_LONGEST = 1800  # characters of a message


class InputError(ValueError):
    """Input that cannot be used; the message names what was received and what would work.

    The command line prints only the message and exits with ``BAD_INPUT``. A very long message loses its middle.
    """

    def __init__(self, message: object = ""):
        text = str(message)
        super().__init__(text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} [...] {text[-_LONGEST // 3 :]}")


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
        settings = ", ".join(f"{name}={brief(value)}" for name, value in received.items())
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
    close = difflib.get_close_matches(str(name)[:100], names, n=3)
    hints = [f"did you mean {' or '.join(close)}?"] if close else []
    if not close or len(names) <= 20:
        hints.append(f"there are {listed(names, 20)}")
    return InputError(f"{f'{of} has ' if of else ''}no {kind} {brief(name)}; {' '.join(hints)}")


class _Brief(reprlib.Repr):
    """Repeats values of any size, and containers of themselves, in text of bounded length and in bounded time."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother = 3, 200, 200
        self.maxlist = self.maxtuple = self.maxdict = self.maxset = 10

    def repr_int(self, x: int, level: int) -> str:
        return repr(x) if x.bit_length() <= 128 else f"an integer of {x.bit_length()} bits"

    def repr_instance(self, x: object, level: int) -> str:
        containers = (dict, list, tuple, set, frozenset)
        return f"<{type(x).__name__}>" if isinstance(x, containers) else super().repr_instance(x, level)


_BRIEF = _Brief()


def brief(value: object, *, quoted: bool = True) -> str:
    """Return a value for a message, in bounded length; text is not quoted if ``quoted`` is false."""
    text = _BRIEF.repr(value)
    text = text[1:-1] if isinstance(value, str) and not quoted else text
    return text if len(text) <= 500 else f"{text[:500]}..."


def counted(number: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun in the singular or plural: ``1 epoch``, ``2 epochs``, ``2 boxes``."""
    return f"{number:,} {noun if number == 1 else plural or plural_of(noun)}"


def plural_of(noun: str) -> str:
    """Return the regular plural of a noun: ``class`` gives ``classes``, ``category`` gives ``categories``."""
    if noun.endswith("y") and noun[-2:-1] not in "aeiou":
        return f"{noun[:-1]}ies"
    return f"{noun}es" if noun.endswith(("s", "x", "ch", "sh")) and not noun.endswith("epoch") else f"{noun}s"


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
