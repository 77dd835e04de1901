"""A list of models in the manifest: each model alone, and the mistakes in a list with their places."""

import pytest

from llmserve.config.conflict import Path
from llmserve.config.load import parse_manifest
from llmserve.config.schema import Manifest
from llmserve.config.several_models import in_file
from llmserve.core.errors import ManifestError

_HEAD = """\
kind: LLMServe
deployment: {replicas: {prefill: 2, decode: 3}}
engine: {dtype: float32, max_model_len: 512, sim: {blocks: 64, vocab_size: 99}}
models:
"""
_TWO = """\
- source: hub:org/Large-Model
  name: large
  share: 0.5
  tenants: [red]
  adapters: [{name: sql, source: dir:/adapters/sql}]
- source: hub:org/small.model
  disaggregated: false
  replicas: {decode: 1}
  engine: {max_model_len: 64, sim: {blocks: 8}, env: [{name: A, value: "1"}]}
  kv_cache: {memory_gb: 2.5}
  lora: {slots: 2}
"""


def listed(models: str, sections: str = "") -> Manifest:
    return parse_manifest(_HEAD + models + sections, "m.yaml")


def refused(models: str, sections: str = "") -> list[str]:
    with pytest.raises(ManifestError) as caught:
        listed(models, sections)
    return caught.value.message.splitlines()


def test_a_list_serves_its_models_in_order() -> None:
    manifest = listed(_TWO)
    assert [one.served_name for one in manifest.served] == ["large", "small.model"]
    assert [one.slug for one in manifest.served] == ["large", "small-model"]
    assert [(one.share, one.tenants) for one in manifest.served] == [(0.5, ("red",)), (1.0, ())]


def test_each_model_alone_has_its_own_keys_in_the_sections() -> None:
    manifest = listed(_TWO)
    large, small = manifest.for_model("large"), manifest.for_model("small.model")
    assert large.model.source == "hub:org/Large-Model"
    assert [one.name for one in large.model.adapters] == ["sql"]
    assert (large.model.share, large.model.tenants) == (0.5, ("red",))
    assert (large.engine, large.kv_cache, large.lora) == (manifest.engine, manifest.kv_cache, None)
    assert large.deployment == manifest.deployment
    assert (small.engine.dtype, small.engine.max_model_len) == ("float32", 64)
    assert (small.engine.sim.blocks, small.engine.sim.vocab_size) == (8, 99)
    assert [one.name for one in small.engine.env] == ["A"]
    assert small.kv_cache.memory_gb == 2.5
    assert small.lora is not None
    assert small.lora.slots == 2
    assert not small.deployment.disaggregated
    assert (small.deployment.replicas.prefill, small.deployment.replicas.decode) == (0, 1)
    assert small.for_model("small.model") == small


def test_keys_of_lora_are_merged_over_the_section() -> None:
    small = listed(_TWO, "lora: {slots: 7, max_rank: 64}\n").for_model("small.model")
    assert small.lora is not None
    assert (small.lora.slots, small.lora.max_rank) == (2, 64)


def test_a_model_may_be_disaggregated_where_the_others_are_not() -> None:
    sections = "deployment: {disaggregated: false, replicas: {prefill: 0, decode: 2}}\n"
    text = "- {source: hub:a/one, disaggregated: true, replicas: {prefill: 1}}\n- source: hub:a/two\n"
    manifest = parse_manifest(f"kind: LLMServe\n{sections}models:\n{text}", "m.yaml")
    one, two = (manifest.alone(model).deployment for model in manifest.served)
    assert (one.disaggregated, one.replicas.prefill, one.replicas.decode) == (True, 1, 2)
    assert (two.disaggregated, two.replicas.prefill, two.replicas.decode) == (False, 0, 2)


def test_one_model_is_served_as_one_of_a_list() -> None:
    one = parse_manifest(
        "kind: LLMServe\nmodels:\n  primary: {source: hub:a/b, name: c}\n"
        "  adapters: [{name: d, source: dir:/d}]\n",
        "m.yaml",
    )
    (model,) = one.served
    assert (model.source, model.served_name, model.adapters[0].name) == ("hub:a/b", "c", "d")
    assert one.model == model
    assert one.for_model("c") is one


def test_an_unknown_model_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        ManifestError, match=r"^models: there is no model 'tiny'; there is large, small\.model$"
    ):
        listed(_TWO).for_model("tiny")


def test_a_manifest_of_several_models_has_no_only_one() -> None:
    with pytest.raises(ValueError, match="too many values"):
        _ = listed(_TWO).model


def test_a_name_without_latin_letters_has_a_slug() -> None:
    (model,) = listed("- {source: hub:a/b, name: модель}").served
    assert model.slug == "model-26039e58"
    (long,) = listed("- {source: hub:a/b, name: " + 39 * "x" + ".5}").served
    assert long.slug == 39 * "x"


@pytest.mark.parametrize(
    ("models", "said"),
    [
        (
            "- {source: hub:a/b}\n- {source: hub:c/b}",
            "m.yaml:6: models[1].name: 'b' is the name of models[0], too",
        ),
        (
            "- {source: hub:a/b}\n- {source: hub:a/b}",
            "m.yaml:6: models[1].name: 'b' is the name of models[0], too",
        ),
        (
            "- source: hub:a/b\n- source: hub:a/c\n  adapters:\n  - {name: d, source: dir:/d}\n"
            "  - {name: b, source: dir:/b}",
            "m.yaml:9: models[1].adapters[1].name: 'b' is the name of models[0], too",
        ),
        (
            "- {source: hub:a/b, adapters: [{name: x, source: dir:/x}]}\n"
            "- {source: hub:a/c, adapters: [{name: x, source: dir:/x}]}",
            "m.yaml:6: models[1].adapters[0].name: 'x' is the name of models[0].adapters[0], too",
        ),
        (
            "- source: hub:a/b.1\n- source: hub:a/c\n  name: b-1",
            "m.yaml:7: models[1].name: its workers would have the names of those of 'b.1': choose",
        ),
        ("- {source: hub:a/b, sourc: x}", "m.yaml:5: models[0].sourc: unknown key; did you mean 'source'?"),
        ("- name: x", "m.yaml:5: models[0].source: missing"),
        ("- {source: pakage:a/b}", "m.yaml:5: models[0].source: unknown source scheme 'pakage:'"),
        ("- {source: hub:a/b, share: 0}", "m.yaml:5: models[0].share: must be more than 0, got 0"),
        ("- {source: hub:a/b, share: 1.5}", "m.yaml:5: models[0].share: must be at most 1, got 1.5"),
        (
            "- source: hub:a/b\n  engine: {dtyp: auto}",
            "m.yaml:6: models[0].engine.dtyp: unknown key; did you mean 'dtype'?",
        ),
        (
            "- source: hub:a/b\n- source: hub:a/c\n  engine:\n    max_batched_tokens: 7",
            "m.yaml:8: models[1].engine.max_batched_tokens: must be at least engine.max_decode_concurrency",
        ),
        (
            "- source: hub:a/b\n  replicas:\n    prefill: 0",
            "m.yaml:7: models[0].replicas.prefill: a disaggregated deployment needs a prefill engine",
        ),
        (
            "- source: hub:a/b\n  lora: {dram_gb: 1}",
            "m.yaml:6: models[0].lora.dram_gb: is one for all models: set lora.dram_gb instead",
        ),
        ("  []", "m.yaml:4: models: must not be empty"),
        ("  5", "m.yaml:4: models: expected a mapping of keys, got 5"),
    ],
)
def test_a_mistake_is_named_with_its_line_and_its_model(models: str, said: str) -> None:
    found = refused(models)
    assert len(found) == 1
    assert found[0].startswith(said)


def test_a_mistake_for_all_models_is_named_once() -> None:
    (found,) = refused(
        "- source: hub:a/b\n- source: hub:a/c\n", "kv_cache: {page_size_kb: 8, block_size_tokens: 16}"
    )
    assert found.startswith("m.yaml:7: kv_cache.block_size_tokens: kv_cache.page_size_kb already sets")


@pytest.mark.parametrize(
    ("alone", "written"),
    [
        (("models", "primary", "source"), ("models", 1, "source")),
        (("models", "adapters", 0, "name"), ("models", 1, "adapters", 0, "name")),
        (("deployment", "disaggregated"), ("models", 1, "disaggregated")),
        (("deployment", "replicas", "decode"), ("models", 1, "replicas", "decode")),
        (("deployment", "replicas", "prefill"), ("deployment", "replicas", "prefill")),
        (("engine", "max_model_len"), ("models", 1, "engine", "max_model_len")),
        (("engine", "env", 0), ("models", 1, "engine", "env", 0)),
        (("engine", "dtype"), ("engine", "dtype")),
        (("kv_cache", "memory_gb"), ("models", 1, "kv_cache", "memory_gb")),
        (("lora", "slots"), ("models", 1, "lora", "slots")),
        (("lora",), ("models", 1, "lora")),
        (("state", "redis"), ("state", "redis")),
    ],
)
def test_a_key_is_found_where_the_model_or_its_section_has_it(alone: Path, written: Path) -> None:
    manifest = listed(_TWO)
    assert in_file(manifest, manifest.served[1], alone) == written


def test_a_key_of_the_sections_stays_there_for_a_model_without_keys_of_its_own() -> None:
    manifest = listed(_TWO)
    for path in (("lora",), ("engine", "max_model_len"), ("deployment", "disaggregated")):
        assert in_file(manifest, manifest.served[0], path) == path
