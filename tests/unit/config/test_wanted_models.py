"""Entries of models that a running cluster is asked to load."""

import pytest

from llmserve.config.schema import Manifest, ServedModel
from llmserve.config.wanted_models import check_code, entry_of, manifest_with, parse_entry
from llmserve.core.errors import InvalidRequest, ManifestError

MANIFEST = Manifest.model_validate({"kind": "LLMServe", "models": {"primary": {"source": "hub:a/b"}}})


def test_an_entry_travels_as_it_was_written() -> None:
    text = '{"source":"hub:c/d","engine":{"max_model_len":512}}'
    model = parse_entry(text)
    assert entry_of(model) == text
    assert parse_entry(entry_of(model)) == model


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{}", "source: missing"),
        ('{"source": "a/b", "engin": {}}', "engin: unknown key; did you mean 'engine'"),
        (
            '{"source": "a/b", "engine": {"max_model_len": "x"}}',
            "engine.max_model_len: expected a whole number",
        ),
        ('{"source": "a/b", "share": 0.5}', "share: cannot be set here: only models of the manifest"),
        (
            '{"source": "a/b", "adapters": [{"name": "x", "source": "dir:/x"}]}',
            "adapters: cannot be set here",
        ),
        ("no json", "Invalid JSON"),
    ],
)
def test_a_wrong_entry_is_refused_by_its_key(text: str, why: str) -> None:
    with pytest.raises(InvalidRequest, match=why):
        parse_entry(text)


def test_a_manifest_has_other_models() -> None:
    changed = manifest_with(MANIFEST, [ServedModel(source="hub:c/d", name="x")])
    assert [one.served_name for one in changed.served] == ["x"]
    assert changed.deployment == MANIFEST.deployment


def test_models_that_cannot_be_side_by_side_are_refused() -> None:
    with pytest.raises(ManifestError, match="'x' is the name of models"):
        manifest_with(
            MANIFEST, [ServedModel(source="hub:c/d", name="x"), ServedModel(source="hub:e/f", name="x")]
        )


CODE = [
    {"options": {"trust_remote_code": True}},
    {"options": {"logits_processors": ["os:system"]}},
    {"options": {"io_processor_plugin": "plugin"}},
    {"options": {"reasoning_parser_plugin": "/tmp/plugin.py"}},
    {"env": [{"name": "LD_PRELOAD", "value": "/tmp/evil.so"}]},
]


@pytest.mark.parametrize("engine", CODE)
def test_only_the_manifest_lets_code_run(engine: dict[str, object]) -> None:
    fields = {"source": "hub:c/d", "name": "x", "engine": engine}
    model = ServedModel.model_validate(fields)
    with pytest.raises(InvalidRequest, match=r"engine\..*: only the manifest may let code run"):
        check_code(model, MANIFEST)
    declared = MANIFEST.model_copy(update={"models": (model,)})
    check_code(model.model_copy(update={"name": "y", "share": 1.0}), declared)
    with pytest.raises(InvalidRequest, match="only the manifest"):
        check_code(ServedModel.model_validate({**fields, "source": "hub:e/f"}), declared)


@pytest.mark.parametrize("engine", [{}, {"options": {"trust_remote_code": False, "seed": 1}}])
def test_an_entry_without_code_is_fine(engine: dict[str, object]) -> None:
    check_code(ServedModel.model_validate({"source": "hub:c/d", "engine": engine}), MANIFEST)
