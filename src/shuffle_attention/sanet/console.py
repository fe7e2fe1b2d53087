"""The terminal: the console that commands print to, tables, progress bars and durations."""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

from rich import progress
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

# File names are printed in full and literally, whatever the width of the terminal.
console = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)
errors = Console(highlight=False, soft_wrap=True, markup=False, emoji=False, stderr=True)


def table(columns: Collection[str], *, text: Collection[str] = ("",), title: str | None = None) -> Table:
    """Return an empty table; columns of ``text`` are left-aligned and wrap, numbers do neither, and none is cut."""
    empty = Table(box=SIMPLE, pad_edge=False, padding=(0, 1, 0, 0), title=title, title_justify="left")
    for column in columns:
        is_text = column in text
        empty.add_column(column, justify="left" if is_text else "right", no_wrap=not is_text, overflow="fold")
    return empty


@contextmanager
def progress_bar(total: int, verb: str, where: Console = console) -> Iterator[Callable[[int], None]]:
    """Show a progress bar over images on a terminal, and yield a function that advances it by a number."""
    columns = (progress.TextColumn(verb), progress.BarColumn(bar_width=24), progress.MofNCompleteColumn())
    columns += (progress.TimeRemainingColumn(),)
    # Rich would send what is printed meanwhile to the console of the bar.
    options = {"console": where, "transient": True, "disable": not where.is_terminal}
    with progress.Progress(*columns, **options, redirect_stdout=not where.stderr) as bar:
        task = bar.add_task("", total=total)
        yield lambda images: bar.advance(task, images)


def duration(seconds: float) -> str:
    """Return a time as hours, minutes and seconds."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
