"""docs/configuration.md and the JSON Schema are what the code says."""

import json
from pathlib import Path

import pytest

from llmserve.config.schema import Manifest
from llmserve.config.schema.section import path_text, walk
from llmserve.config.schema_doc import json_schema, main, markdown

ROOT = Path(__file__).parents[3]


def test_the_committed_documentation_is_the_generated_one() -> None:
    assert (ROOT / "docs/configuration.md").read_text() == markdown(), (
        "run: python -m llmserve.config.schema_doc --write docs/configuration.md"
    )


# Sections whose keys are explained once, at the first of their kind.
SAME_AS_ANOTHER = (
    "models.draft.",
    "engine.speculation.draft.",
    *(f"models[].{key}." for key in ("draft", "engine", "kv_cache", "lora")),
    "models[].adapters[].",
    *(
        f"deployment.k8s.resources.{role}."
        for role in ("router", "prefill", "decode", "kvmanager", "modelmanager")
    ),
)


def test_every_value_has_a_line_in_the_documentation() -> None:
    text = markdown()
    for knob in walk(Manifest):
        path = path_text(knob.path)
        assert path.startswith(SAME_AS_ANOTHER) or f"`{path}`" in text


def test_tables_are_whole() -> None:
    for line in markdown().splitlines():
        if line.startswith("|"):
            assert line.count("|") == 6


def test_write_writes(tmp_path: Path) -> None:
    assert main(["--write", str(tmp_path / "c.md")]) == 0
    assert (tmp_path / "c.md").read_text() == markdown()


def test_without_options_the_schema_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(json_schema()))


def test_the_schema_has_units_and_says_what_is_planned() -> None:
    engine = json_schema()["$defs"]["EngineConfig"]["properties"]
    assert engine["max_model_len"]["x-unit"] == "tokens"
    assert engine["max_model_len"]["x-status"] == "available"
    assert engine["pipeline_parallel"]["x-status"] == "planned"


def test_the_schema_describes_both_ways_to_write_a_manifest() -> None:
    schema = json_schema()
    assert schema["required"] == ["kind"]
    assert set(schema["properties"]["spec"]["properties"]) < set(schema["properties"])
    assert schema["additionalProperties"] is False
    under_spec, at_the_top = schema["oneOf"]
    assert (under_spec["required"], at_the_top["required"]) == (["spec"], ["models"])
