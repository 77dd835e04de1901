"""Imports of large libraries."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing() -> Iterator[None]:
    """Around the import of something as large as torch or vLLM, whose modules make a million objects that
    stay. The garbage collector would look at them again and again: a fifth of the CPU of the import, and
    afterwards a pause of the event loop with each full collection. So it rests meanwhile, and never looks at
    what there is at the end."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()
