"""The import of transformers, which looks through all files of its models for what they export."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def import_transformers() -> None:
    """Call it before vLLM is imported. It looks through these two thousand files once, and not again for
    `transformers.models`: that is 0.3 s of CPU."""
    import transformers

    with _known(Path(transformers.__path__[0]) / "models"):
        import transformers.models  # as vLLM does


@contextmanager
def _known(folder: Path) -> Iterator[None]:
    """Answers what the files below `folder` export from the answer that the package itself got."""
    from transformers.utils import import_utils

    stock, prefix = import_utils.define_import_structure, "models."
    exports = {
        needed: {name.removeprefix(prefix): made for name, made in names.items() if name.startswith(prefix)}
        for needed, names in stock(folder, prefix="models").items()
    }

    def known(path: str, prefix: str | None = None) -> object:
        asks_again = Path(path) == folder / "__init__.py" and prefix is None
        return exports if asks_again else stock(path, prefix)

    setattr(import_utils, stock.__name__, known)
    try:
        yield
    finally:
        setattr(import_utils, stock.__name__, stock)
