"""Arguments of vLLM in the manifest: which may be set, and how the others are refused."""

import pytest

from llmserve.config.conflict import Conflict
from llmserve.config.engine_options import KEY_OF, options_digest, unknown_options
from llmserve.config.load import parse_manifest
from llmserve.config.schema import EngineConfig, Manifest
from llmserve.config.schema.section import section_at
from llmserve.core.errors import ManifestError

_HEAD = "kind: LLMServe\nmodels: {primary: {source: hub:a/b}}\n"


def refused(options: str) -> list[str]:
    with pytest.raises(ManifestError) as caught:
        parse_manifest(f"{_HEAD}engine:\n  options: {options}\n", "m.yaml")
    return caught.value.message.splitlines()


@pytest.mark.parametrize(
    ("option", "why"),
    [
        ("max_model_len: 5", "set engine.max_model_len instead"),
        ("kv_cache_dtype: fp8", "set kv_cache.hbm_dtype instead"),
        ("quantization: fp8", "set engine.quantization instead"),
        ("enable_prefix_caching: false", "cannot be set: the names of KV blocks depend on it"),
        ("data_parallel_rank: 1", "cannot be set: deployment.replicas has the number of engines"),
        ("_api_process_rank: 1", "cannot be set: LLMServe starts the processes of vLLM"),
        ("load_format: pt", "only safetensors are loaded: pickles can run any code"),
    ],
)
def test_what_llmserve_sets_or_builds_on_is_refused(option: str, why: str) -> None:
    name = option.partition(":")[0]
    assert refused(f"{{{option}}}") == [f"m.yaml:4: engine.options.{name}: {why}"]


def test_others_pass() -> None:
    text = f"{_HEAD}engine:\n  options: {{load_format: dummy, compilation_config: {{mode: 3}}, seed: null}}\n"
    options = parse_manifest(text, "m.yaml").engine.options
    assert options == {"load_format": "dummy", "compilation_config": {"mode": 3}, "seed": None}


def test_a_value_that_is_no_json_has_its_place() -> None:
    (found,) = refused("{seed: 2020-01-01}")
    assert found.startswith("m.yaml:4: engine.options.seed: ")


@pytest.mark.parametrize("key", sorted(set(KEY_OF.values())))
def test_the_keys_that_are_named_exist(key: str) -> None:
    *above, last = key.split(".")
    section = section_at(Manifest, above) if above else Manifest
    assert section is not None
    assert last in section.model_fields


def test_an_argument_that_vllm_lacks() -> None:
    engine = EngineConfig.model_validate({"options": {"seed": 1, "async_schedulin": True}})
    known = ("async_scheduling", "seed")
    assert list(unknown_options(engine, known)) == [
        Conflict.at(
            "vLLM has no argument 'async_schedulin'; did you mean 'async_scheduling'?",
            "engine.options.async_schedulin",
        )
    ]


def test_the_identity_of_kv_names_what_only_vllm_understands() -> None:
    def digest(**keys: object) -> str:
        return options_digest(EngineConfig.model_validate(keys))

    assert digest() == digest(dtype="float32", options={}) == ""
    assert digest(options={"a": 1, "b": 2}) == digest(options={"b": 2, "a": 1})
    different = [digest(options={"a": 1}), digest(options={"a": 2}), digest(quantization="fp8")]
    assert len({*different, ""}) == 4
    assert all(len(one) == 16 for one in different)


def test_a_model_of_several_has_its_own_beside_those_of_all() -> None:
    text = """\
kind: LLMServe
engine: {options: {seed: 1, disable_cascade_attn: true}}
models:
- source: hub:a/b
  engine: {options: {seed: 2, async_scheduling: false}}
- source: hub:a/c
"""
    one, other = (
        manifest.engine.options
        for manifest in map(parse_manifest(text, "m.yaml").alone, parse_manifest(text, "m.yaml").served)
    )
    assert one == {"seed": 2, "disable_cascade_attn": True, "async_scheduling": False}
    assert other == {"seed": 1, "disable_cascade_attn": True}


@pytest.mark.parametrize(
    ("of_all", "own", "where"),
    [
        ("{seed: 1}", "{max_num_seqs: 1}", "m.yaml:5: models[0].engine.options.max_num_seqs"),
        ("{max_num_seqs: 1}", "{seed: 1}", "m.yaml:2: engine.options.max_num_seqs"),
    ],
)
def test_a_mistake_is_where_it_was_written(of_all: str, own: str, where: str) -> None:
    text = f"""\
kind: LLMServe
engine: {{options: {of_all}}}
models:
- source: hub:a/b
  engine: {{options: {own}}}
"""
    with pytest.raises(ManifestError) as caught:
        parse_manifest(text, "m.yaml")
    assert caught.value.message == f"{where}: set engine.max_decode_concurrency instead"
