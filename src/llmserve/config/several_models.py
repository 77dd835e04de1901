"""The rules of a list of models, and where the file has the keys of one of them. Pure.

What concerns one model is checked in the manifest of that model alone (`Manifest.alone`), whose keys have the
names that they have with one model: `models.primary.source`, `engine.max_model_len`. `in_file` finds them in
the file.
"""

from collections.abc import Iterator

from llmserve.config.conflict import Conflict, Path
from llmserve.config.schema import Manifest, Models, ServedModel
from llmserve.config.schema.section import ForAllModels, ManifestSection, marker, path_text

_MERGED = ("engine", "kv_cache", "lora")


def in_file(manifest: Manifest, model: ServedModel, path: Path) -> Path:
    """Returns the path in the file of a path in the manifest of one model. model: an entry of `served`."""
    if isinstance(manifest.models, Models):
        return path
    entry = ("models", next(index for index, one in enumerate(manifest.models) if one is model))
    match path:
        case ("models", "primary", *rest):
            return (*entry, *rest)
        case ("models", *rest):
            return (*entry, *rest)
        case ("deployment", "disaggregated") if model.disaggregated is not None:
            return (*entry, "disaggregated")
        case ("deployment", "replicas", str(role)) if role in model.replicas.model_fields_set:
            return (*entry, "replicas", role)
        case ("engine", "options", str(option), *_) if option not in model.engine.options:
            return path
        case (str(name), str(key), *_) if name in _MERGED and key in _keys_set(getattr(model, name)):
            return (*entry, *path)
        case ("lora",) if model.lora is not None:
            return (*entry, *path)
    return path


def conflict_in_file(manifest: Manifest, model: ServedModel, found: Conflict) -> Conflict:
    """Returns a finding in the manifest of one model with its paths in the file."""
    return Conflict(tuple(in_file(manifest, model, path) for path in found.paths), found.message)


def _keys_set(section: ManifestSection | None) -> set[str]:
    return set() if section is None else section.model_fields_set


def distinct_names(manifest: Manifest) -> Iterator[Conflict]:
    """Checks that a name for clients is that of one model or adapter, and that workers of two models have
    different names."""
    names: dict[str, Path] = {}
    slugs: dict[str, ServedModel] = {}
    for model in manifest.served:
        yield from _taken(names, model.served_name, in_file(manifest, model, ("models", "primary")))
        for index, adapter in enumerate(model.adapters):
            yield from _taken(names, adapter.name, in_file(manifest, model, ("models", "adapters", index)))
        other = slugs.setdefault(model.slug, model)
        if other.served_name != model.served_name:
            message = (
                f"its workers would have the names of those of '{other.served_name}': choose another name"
            )
            yield Conflict((in_file(manifest, model, ("models", "primary", "name")),), message)


def _taken(names: dict[str, Path], name: str, here: Path) -> Iterator[Conflict]:
    holder = names.setdefault(name, here)
    if holder is not here:
        whose = "the model" if holder == ("models", "primary") else path_text(holder)
        yield Conflict(((*here, "name"), holder), f"'{name}' is the name of {whose}, too")


def keys_for_all(manifest: Manifest) -> Iterator[Conflict]:
    """Refuses a key in a model's entry that has one value for all models."""
    if isinstance(manifest.models, Models):
        return
    for index, model in enumerate(manifest.models):
        for name in _MERGED:
            section: ManifestSection | None = getattr(model, name)
            for key in sorted(_keys_for_all(section) if section is not None else ()):
                message = f"is one for all models: set {name}.{key} instead"
                yield Conflict((("models", index, name, key),), message)


def _keys_for_all(section: ManifestSection) -> Iterator[str]:
    for key in section.model_fields_set:
        if marker(type(section).model_fields[key], ForAllModels) is not None:
            yield key
