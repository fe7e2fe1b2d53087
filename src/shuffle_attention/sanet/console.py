"""Where commands print, and how they say times."""

from rich.console import Console

# Names of files are printed whole and as they are, whatever the width of the terminal.
console = Console(highlight=False, soft_wrap=True, markup=False)


def duration(seconds: float) -> str:
    """Returns a time as hours, minutes and seconds."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
