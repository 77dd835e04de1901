"""Where commands print tables."""

from rich.console import Console

_WIDTH_OF_A_FILE = 140


def screen() -> Console:
    """The terminal, or standard output as a file, which has no width of its own."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _WIDTH_OF_A_FILE
    return console
