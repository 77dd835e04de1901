"""The models that a running cluster is to have: those of its manifest, and those that were loaded since."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from llmserve.config.conflict import refuse
from llmserve.config.messages import describe, unknown_key
from llmserve.config.rules import conflicts
from llmserve.config.schema import Manifest, ServedModel
from llmserve.config.schema.section import path_text
from llmserve.core.errors import InvalidRequest


class ModelState(StrEnum):
    """The life of a model in a cluster. registered: nobody works on it yet. fetching: its files are fetched
    and checked. fetched: they are here, and nobody has asked for more. starting: its engines start, and its
    requests wait for them. ready: it answers. draining: new requests do not know it, and those that it has go
    on. gone: no process of it is left. failed: it cannot be had."""

    REGISTERED = "registered"
    FETCHING = "fetching"
    FETCHED = "fetched"
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    GONE = "gone"
    FAILED = "failed"


PENDING_STATES = (ModelState.REGISTERED, ModelState.FETCHING, ModelState.FETCHED, ModelState.STARTING)


@dataclass(frozen=True, slots=True)
class ModelOrder:
    """What a router orders of who runs the processes: to have this model. number: of its registration, by
    which it is reported. entry: JSON, as an entry of `models` in the manifest. declared: the manifest has it.
    may_start: its engines may be started; else it is prepared only. swap: name of the model whose place its
    engines get; empty: none. pull: it is fetched and checked only."""

    number: int
    name: str
    entry: str
    declared: bool = False
    may_start: bool = True
    swap: str = ""
    pull: bool = False


@dataclass(frozen=True, slots=True)
class ModelReport:
    """What became of an order. state: fetching; fetched, for a pull; starting, when it is prepared; ready; or
    failed. detail: what is done now. directory: of the prepared model. error: name of a class of
    core/errors.py with `message`, when it cannot be had."""

    number: int
    state: ModelState
    detail: str = ""
    directory: str = ""
    error: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class ServedName:
    """A model for which apiservers are to take requests. directory: empty until it is known. ready: its
    engines run. The rest is as in ModelOrder."""

    name: str
    entry: str
    directory: str = ""
    declared: bool = False
    ready: bool = False


@dataclass(frozen=True, slots=True)
class AnsweringModels:
    """What an apiserver says. names: the models for which it takes requests. failed: why it cannot for
    others."""

    names: frozenset[str] = frozenset()
    failed: Mapping[str, str] = field(default_factory=dict)


# The router knows these of the manifest's models only.
_ONLY_IN_MANIFEST = {
    "adapters": "load them when the model is ready: `llmserve adapters load`",
    "share": "only models of the manifest have one",
}

# Options of engines that name code which processes run.
_CODE_OPTIONS = ("trust_remote_code", "logits_processors", "io_processor_plugin", "reasoning_parser_plugin")


def entry_of(model: ServedModel) -> str:
    """Returns an entry of `models` as processes tell it each other: JSON with the keys that were set."""
    return model.model_dump_json(exclude_unset=True)


def parse_entry(text: str) -> ServedModel:
    """text: JSON, as an entry of `models` in the manifest. Errors: InvalidRequest that names each key."""
    try:
        model = ServedModel.model_validate_json(text)
    except ValidationError as error:
        raise InvalidRequest("; ".join(map(_wrong, error.errors()))) from error
    for key, hint in _ONLY_IN_MANIFEST.items():
        if getattr(model, key) != ServedModel.model_fields[key].default:
            raise InvalidRequest(f"{key}: cannot be set here: {hint}", field=key)
    return model


def check_code(model: ServedModel, manifest: Manifest) -> None:
    """Checks that who may load models does not run code of their own with them: only who writes the manifest
    may. Its own entries may come again, under another name too. Errors: InvalidRequest."""
    code = _code_of(model)
    if any(
        (one.source, one.revision, _code_of(one)) == (model.source, model.revision, code)
        for one in manifest.served
    ):
        return
    for key in code:
        raise InvalidRequest(f"{key}: only the manifest may let code run", field=key)


def _code_of(model: ServedModel) -> dict[str, object]:
    """Returns the keys of an entry that let code run, with their values."""
    options = model.engine.options
    code: dict[str, object] = {
        f"engine.options.{one}": options[one] for one in _CODE_OPTIONS if options.get(one)
    }
    return code | ({"engine.env": model.engine.env} if model.engine.env else {})


def _wrong(details: ErrorDetails) -> str:
    path = details["loc"]
    if details["type"] == "extra_forbidden":
        return f"{path_text(path)}: {unknown_key(ServedModel, path)}"
    return f"{path_text(path)}: {describe(details, secret=False)}"


def manifest_with(manifest: Manifest, models: Sequence[ServedModel]) -> Manifest:
    """Returns the manifest as if it had these models. Errors: ManifestError when that would be wrong."""
    changed = manifest.model_copy(update={"models": tuple(models)})
    refuse(conflicts(changed))
    return changed
