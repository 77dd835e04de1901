"""Whether the terminal that a process was started from is still there."""

import os

_TERMINAL = "/dev/tty"  # the kernel's name for the one that controls this process


class Terminal:
    """Made at the start. SIGHUP means two things: the terminal is gone, or please read your files again;
    this tells them apart."""

    def __init__(self) -> None:
        self._had_one = _is_there()

    def is_gone(self) -> bool:
        """There was one, and there is none now. Never true for a service, which has none."""
        return self._had_one and not _is_there()


def _is_there() -> bool:
    try:
        os.close(os.open(_TERMINAL, os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True
