"""Every mistake in a manifest is reported with its file, line, path and a hint; all of them at once."""

from pathlib import Path
from textwrap import dedent

import pytest

from llmserve.config.conflict import Conflict
from llmserve.config.load import load_manifest, locate, located, parse_manifest
from llmserve.core.errors import ManifestError

MINIMAL = """\
kind: LLMServe
models:
  primary:
    source: hub:org/name
"""


def problems(text: str) -> list[str]:
    """The lines of the error that a manifest causes."""
    with pytest.raises(ManifestError) as caught:
        parse_manifest(dedent(text), "m.yaml")
    return caught.value.message.splitlines()


def with_sections(text: str) -> list[str]:
    """Problems of a manifest that is right but for these sections, which start at line 5."""
    return problems(MINIMAL + dedent(text))


def test_a_minimal_manifest_has_defaults() -> None:
    manifest = parse_manifest(MINIMAL, "m.yaml")
    assert manifest.model.source == "hub:org/name"
    assert manifest.model.served_name == "name"
    assert manifest.deployment.replicas.decode == 1
    assert manifest.engine.max_decode_concurrency == 64


def test_sections_may_stand_under_spec() -> None:
    manifest = parse_manifest(
        dedent("""\
        apiVersion: llmserve/v1
        kind: LLMServe
        metadata:
          name: lab
        spec:
          models:
            primary:
              source: hub:org/name
          engine:
            max_model_len: 512
        """),
        "m.yaml",
    )
    assert manifest.metadata.name == "lab"
    assert manifest.engine.max_model_len == 512


def test_paths_under_spec_are_named_as_written() -> None:
    text = """\
    kind: LLMServe
    spec:
      models:
        primary:
          source: hub:org/name
      engine:
        max_model_length: 512
    """
    (line,) = problems(text)
    assert line == "m.yaml:7: spec.engine.max_model_length: unknown key; did you mean 'max_model_len'?"


def test_a_section_beside_spec_belongs_under_it() -> None:
    text = """\
    kind: LLMServe
    spec:
      models: {primary: {source: hub:org/name}}
    engine:
      kind: sim
    """
    (line,) = problems(text)
    assert line == "m.yaml:4: engine: unknown key; it belongs under 'spec'"


def test_the_manifest_is_frozen() -> None:
    manifest = parse_manifest(MINIMAL, "m.yaml")
    with pytest.raises(ValueError, match="frozen"):
        manifest.engine.dtype = "float16"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(
            "engine:\n  kind: vllm\n  maxModelLen: 5\n",
            "m.yaml:7: engine.maxModelLen: unknown key; did you mean 'max_model_len'?",
            id="camel-case",
        ),
        pytest.param(
            "engin:\n  kind: vllm\n", "m.yaml:5: engin: unknown key; did you mean 'engine'?", id="section"
        ),
        pytest.param(
            "engine:\n  memory_gb: 2\n",
            "m.yaml:6: engine.memory_gb: unknown key; 'memory_gb' exists as kv_cache.memory_gb",
            id="other-section",
        ),
        pytest.param(
            "engine:\n  zzz: 2\n",
            "m.yaml:6: engine.zzz: unknown key",
            id="nothing-close",
        ),
        pytest.param(
            "deployment:\n\n  replicas:\n    decode: '2'\n",
            "m.yaml:8: deployment.replicas.decode: expected a whole number, got the text '2'",
            id="text-for-int",
        ),
        pytest.param(
            "deployment:\n  disaggregated: 'yes'\n",
            "m.yaml:6: deployment.disaggregated: expected true or false, got the text 'yes'",
            id="text-for-bool",
        ),
        pytest.param(
            "engine:\n  max_model_len: 2.5\n",
            "m.yaml:6: engine.max_model_len: expected a whole number, got 2.5",
            id="float-for-int",
        ),
        pytest.param(
            "engine:\n  max_model_len: true\n",
            "m.yaml:6: engine.max_model_len: expected a whole number, got true",
            id="bool-for-int",
        ),
        pytest.param(
            "engine:\n  max_decode_concurrency:\n",
            "m.yaml:6: engine.max_decode_concurrency: expected a whole number, got nothing",
            id="null-for-int",
        ),
        pytest.param(
            "engine:\n  max_decode_concurrency: 0\n",
            "m.yaml:6: engine.max_decode_concurrency: must be at least 1, got 0",
            id="too-small",
        ),
        pytest.param(
            "deployment:\n  local: {port: 70000}\n",
            "m.yaml:6: deployment.local.port: must be at most 65535, got 70000",
            id="too-large",
        ),
        pytest.param(
            "kv_cache:\n  memory_gb: .inf\n",
            "m.yaml:6: kv_cache.memory_gb: must be a finite number",
            id="infinite",
        ),
        pytest.param(
            "kv_cache:\n  block_size_tokens: 20\n",
            "m.yaml:6: kv_cache.block_size_tokens: must be a multiple of 16, got 20",
            id="multiple-of",
        ),
        pytest.param(
            "engine:\n  device: gpu\n",
            "m.yaml:6: engine.device: 'gpu' is not one of auto, cpu, cuda",
            id="not-a-choice",
        ),
        pytest.param(
            "security:\n  kv_sharing: none\n",
            "m.yaml:6: security.kv_sharing: 'none' is not one of tenant, cluster",
            id="who-shares-kv",
        ),
        pytest.param(
            "engine:\n  dtype: bfloat\n",
            "m.yaml:6: engine.dtype: 'bfloat' is not one of auto, bfloat16, float16, float32; "
            "did you mean 'bfloat16'?",
            id="almost-a-choice",
        ),
        pytest.param(
            "engine:\n  - vllm\n",
            "m.yaml:5: engine: expected a mapping of keys, got a list",
            id="list-for-section",
        ),
        pytest.param(
            "engine:\n", "m.yaml:5: engine: expected a mapping of keys, got nothing", id="empty-section"
        ),
        pytest.param(
            "transfer:\n  engine_order: nixl\n",
            "m.yaml:6: transfer.engine_order: expected a list, got the text 'nixl'",
            id="text-for-list",
        ),
        pytest.param(
            "transfer:\n  engine_order:\n    - nixl\n    - tpc\n",
            "m.yaml:8: transfer.engine_order[1]: 'tpc' is not one of nixl, ucx, nccl",
            id="list-item",
        ),
        pytest.param(
            "deployment:\n  local:\n    cores: all\n",
            "m.yaml:7: deployment.local.cores: "
            "'all' is not one of auto; or expected a list, got the text 'all'",
            id="neither-of-a-union",
        ),
        pytest.param(
            "deployment:\n  local:\n    cores: [0, one]\n",
            "m.yaml:7: deployment.local.cores[1]: expected a whole number, got the text 'one'",
            id="item-in-a-union",
        ),
        pytest.param(
            "metadata:\n  name: My_Cluster\n",
            "m.yaml:6: metadata.name: "
            "'My_Cluster' does not have the form ^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$",
            id="pattern",
        ),
        pytest.param(
            "state:\n  5: memory\n", "m.yaml:6: state.5: a key must be text, got 5", id="key-not-text"
        ),
        pytest.param(
            "engine:\n  kind: vllm\n  dtype: auto\n  kind: sim\n",
            "m.yaml:8: engine.kind: the key is here twice, first in line 6",
            id="duplicate-key",
        ),
        pytest.param(
            "security:\n  api_keys:\n    - key: sesame\n",
            "m.yaml:7: security.api_keys[0].tenant: missing",
            id="missing-in-item",
        ),
    ],
)
def test_one_problem(text: str, expected: str) -> None:
    assert with_sections(text) == [expected]


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("engine:\n  pipeline_parallel: 2\n", 6, "engine.pipeline_parallel: not available yet"),
    ],
)
def test_planned_knobs_are_refused(text: str, line: int, words: str) -> None:
    (found,) = with_sections(text)
    assert found.startswith(f"m.yaml:{line}: {words}; it comes with ")


def test_planned_knobs_may_be_set_to_what_they_are() -> None:
    text = MINIMAL + dedent("""\
    deployment: {mode: local, replicas: {router: 1}}
    engine: {pipeline_parallel: 1, speculative_tokens: 0}
    kv_cache: {prefetch_on_prefix: false, hot_keep_secs: 0}
    transfer: {engine_order: []}
    budgets: {max_tokens_in_flight: null}
    state: {backend: memory}
    storageClasses: []
    """)
    assert parse_manifest(text, "m.yaml").transfer.engine_order == ()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(
            "deployment:\n  replicas:\n    prefill: 0\n",
            "m.yaml:7: deployment.replicas.prefill: a disaggregated deployment needs a prefill engine; "
            "set at least 1, or deployment.disaggregated: false",
            id="disaggregated-without-prefill",
        ),
        pytest.param(
            "deployment:\n  disaggregated: false\n  replicas:\n    prefill: 1\n",
            "m.yaml:8: deployment.replicas.prefill: "
            "a deployment that is not disaggregated has no prefill engines; "
            "set 0 or leave it out (replicas.decode counts its engines)",
            id="aggregated-with-prefill",
        ),
        pytest.param(
            "kv_cache:\n  page_size_kb: 64\n  block_size_tokens: 16\n",
            "m.yaml:7: kv_cache.block_size_tokens: "
            "kv_cache.page_size_kb already sets the size of a block; keep one",
            id="two-block-sizes",
        ),
        pytest.param(
            "engine:\n  chunked_prefill: false\n  prefill_long_prompt_tokens: 512\n",
            "m.yaml:7: engine.prefill_long_prompt_tokens: "
            "needs chunked_prefill: otherwise every prompt is computed in one step",
            id="long-prompts-without-chunks",
        ),
        pytest.param(
            "engine:\n  max_model_len: 256\n  prefill_long_prompt_tokens: 512\n",
            "m.yaml:7: engine.prefill_long_prompt_tokens: "
            "must be at most engine.max_model_len (256), got 512",
            id="long-prompts-longer-than-any",
        ),
        pytest.param(
            "engine:\n  max_decode_concurrency: 4\n  min_decode_slots: 4\n",
            "m.yaml:7: engine.min_decode_slots: must leave a place for a prompt: "
            "at most 3 of engine.max_decode_concurrency (4), got 4",
            id="no-place-for-a-prompt",
        ),
        pytest.param(
            "engine:\n  task: embed\n",
            "m.yaml:6: engine.task: a model that is to embed decodes nothing: "
            "it needs deployment.disaggregated: false",
            id="pooling-in-two-phases",
        ),
        pytest.param(
            "engine:\n  task: classify\n  kind: sim\ndeployment:\n  disaggregated: false\n",
            "m.yaml:6: engine.task: the simulated engine only generates",
            id="pooling-in-a-simulation",
        ),
        pytest.param(
            "scheduling:\n  weights:\n    - {tenant: a, weight: 4}\n    - {tenant: a, weight: 2}\n",
            "m.yaml:8: scheduling.weights[1]: names tenant 'a' twice",
            id="a-tenant-with-two-weights",
        ),
        pytest.param(
            "budgets:\n  tenants:\n    - {tenant: a}\n    - {tenant: a, max_requests_in_flight: 2}\n",
            "m.yaml:8: budgets.tenants[1]: names tenant 'a' twice",
            id="a-tenant-with-two-budgets",
        ),
        pytest.param(
            "security:\n  api_keys:\n    - {tenant: a, key: sesame, key_env: KEY}\n",
            "m.yaml:7: security.api_keys[0]: has both key and key_env; keep one",
            id="key-and-key-env",
        ),
        pytest.param(
            "security:\n  api_keys:\n    - tenant: a\n",
            "m.yaml:7: security.api_keys[0]: has no key; set key or key_env",
            id="no-key",
        ),
        pytest.param(
            "security:\n  api_keys:\n  - {tenant: a, key: sesame}\n  - {tenant: b, key: sesame}\n",
            "m.yaml:8: security.api_keys[1]: is the same key as security.api_keys[0], of tenant 'a'",
            id="duplicate-key",
        ),
        pytest.param(
            "scheduling:\n  worker_expiry_seconds: 1\n  worker_heartbeat_seconds: 2\n",
            "m.yaml:6: scheduling.worker_expiry_seconds: "
            "must be more than worker_heartbeat_seconds (2), got 1",
            id="expiry-before-heartbeat",
        ),
        pytest.param(
            "scheduling:\n  worker_heartbeat_seconds: 5\n",
            "m.yaml:6: scheduling.worker_heartbeat_seconds: "
            "must be less than worker_expiry_seconds (4), got 5",
            id="heartbeat-after-expiry-by-default",
        ),
        pytest.param(
            "deployment:\n  local: {single_process: true}\n  replicas: {apiserver: 2}\n",
            "m.yaml:7: deployment.replicas.apiserver: "
            "deployment.local.single_process has exactly one apiserver",
            id="single-process-with-two",
        ),
        pytest.param(
            "deployment:\n  local: {single_process: true}\n  replicas: {kvmanager: 2}\n",
            "m.yaml:7: deployment.replicas.kvmanager: "
            "deployment.local.single_process has exactly one kvmanager",
            id="single-process-with-two-kvmanagers",
        ),
        pytest.param(
            "engine:\n  max_batched_tokens: 32\n",
            "m.yaml:6: engine.max_batched_tokens: "
            "must be at least engine.max_decode_concurrency (64), got 32",
            id="batch-below-concurrency",
        ),
        pytest.param(
            "engine:\n  chunked_prefill: false\n  max_model_len: 4096\n  max_batched_tokens: 2048\n",
            "m.yaml:8: engine.max_batched_tokens: "
            "without chunked_prefill a prompt is computed in one step, so it must "
            "be at least engine.max_model_len (4096), got 2048",
            id="whole-prompts-do-not-fit",
        ),
        pytest.param(
            "engine:\n  kind: sim\nkv_cache:\n  block_size_tokens: 32\n",
            "m.yaml:8: kv_cache.block_size_tokens: "
            "the simulated engine has its own; set engine.sim.block_size_tokens",
            id="sim-block-size",
        ),
        pytest.param(
            "deployment:\n  local:\n    cores: [1, 1]\n",
            "m.yaml:7: deployment.local.cores: names core 1 twice",
            id="core-twice",
        ),
        pytest.param(
            "deployment:\n  local:\n    cores: []\n",
            "m.yaml:7: deployment.local.cores: names no core",
            id="no-core",
        ),
        pytest.param(
            "deployment:\n  replicas: {apiserver: 9}\n  local:\n    separate_ports: true\n    port: 65530\n",
            "m.yaml:9: deployment.local.port: 9 apiservers need ports up to 65538, and 65535 is the last",
            id="ports-run-out",
        ),
        pytest.param(
            "transfer:\n  engine_order:\n    - nixl\n    - ucx\n    - nixl\n",
            "m.yaml:9: transfer.engine_order[2]: names nixl twice",
            id="transport-twice",
        ),
        pytest.param(
            "deployment:\n  replicas: {apiserver: 2}\n  local: {port: 9000, separate_ports: true}\n"
            "observability: {port: 9001}\n",
            "m.yaml:8: observability.port: 9001 is taken by deployment.local.port, too; "
            "set another one of them, or 0 for a free one",
            id="one-port-for-http-and-metrics",
        ),
        pytest.param(
            "deployment:\n  local:\n    port: 9400\n",
            "m.yaml:7: deployment.local.port: 9400 is taken by observability.port, too; "
            "set another one of them, or 0 for a free one",
            id="the-port-that-metrics-have-by-default",
        ),
    ],
)
def test_impossible_combinations(text: str, expected: str) -> None:
    assert with_sections(text) == [expected]


@pytest.mark.parametrize(
    "text",
    [
        "observability: {port: 8000, metrics: false}\n",
        "observability: {port: 0}\ndeployment: {local: {port: 0}}\n",
        "observability: {port: 8000}\ndeployment: {mode: k8s}\n",
        "observability: {port: 8001}\ndeployment: {replicas: {apiserver: 2}}\n",
    ],
)
def test_ports_that_nobody_shares(text: str) -> None:
    parse_manifest(MINIMAL + text, "m.yaml")


def test_what_is_found_later_is_reported_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    path.write_text(
        "kind: LLMServe\nspec:\n  models: {primary: {source: hub:a/b}}\n  engine:\n    dtype: auto\n"
    )
    found = [Conflict((("kv_cache", "memory_gb"),), "too small"), Conflict((("engine", "dtype"),), "no")]
    assert locate(path, found).message.splitlines() == [
        f"{path}:2: spec.kv_cache.memory_gb: too small",
        f"{path}:5: spec.engine.dtype: no",
    ]
    error = found[1].as_error()
    assert (error.message, error.key) == ("engine.dtype: no", ("engine", "dtype"))
    assert located(error, path).message == f"{path}:5: spec.engine.dtype: no"
    assert located(error, tmp_path / "gone.yaml") is error


def test_all_problems_are_listed_in_the_order_of_lines() -> None:
    found = with_sections("""\
    engine:
      device: tpu
      max_batched_tokens: 32
      x: 1
    deployment:
      mode: nomad
      replicas:
        prefill: 0
    """)
    assert [line.split(": ")[0] for line in found] == [f"m.yaml:{n}" for n in (6, 7, 8, 10, 12)]


def test_a_combination_is_not_blamed_on_a_value_that_is_wrong_itself() -> None:
    found = with_sections("deployment:\n  disaggregated: nope\n  replicas:\n    prefill: 0\n")
    assert len(found) == 1
    assert "deployment.disaggregated" in found[0]


def test_combinations_are_checked_even_when_the_model_is_missing() -> None:
    found = problems("kind: LLMServe\ndeployment:\n  replicas:\n    prefill: 0\n")
    assert found[0] == "m.yaml:1: models: missing; it needs models.primary.source"
    assert found[1].startswith("m.yaml:4: deployment.replicas.prefill: ")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("pakage:a/b.gguf", "did you mean 'package:'?"),
        ("package:b.gguf", "package:PYTHON_PACKAGE/FILE.gguf"),
        ("'hub:'", "hub:ORG/NAME"),
        ("''", "must not be empty"),
        ("s3://bucket/model", "unknown source scheme 's3:'"),
    ],
)
def test_model_sources(source: str, words: str) -> None:
    (found,) = problems(f"kind: LLMServe\nmodels:\n  primary:\n    source: {source}\n")
    assert found.startswith("m.yaml:4: models.primary.source: ")
    assert words in found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("", "m.yaml:1: the file is empty; start with 'kind: LLMServe'", id="empty"),
        pytest.param("# nothing\n", "m.yaml:1: the file is empty; start with 'kind: LLMServe'", id="comment"),
        pytest.param("- a\n", "m.yaml:1: expected a mapping of keys, got a list", id="list"),
        pytest.param(
            "just text\n", "m.yaml:1: expected a mapping of keys, got the text 'just text'", id="text"
        ),
        pytest.param(
            "models: {primary: {source: a/b}}\n",
            "m.yaml:1: kind: missing; write 'kind: LLMServe'",
            id="no-kind",
        ),
        pytest.param(
            "models: {primary: {source: a/b}}\nkind: Deployment\n",
            "m.yaml:2: kind: 'Deployment' is not one of LLMServe",
            id="other-kind",
        ),
        pytest.param(
            "kind: LLMServe\nspec: [1]\n",
            "m.yaml:2: spec: expected a mapping of keys, got a list",
            id="spec-list",
        ),
        pytest.param(
            "kind: LLMServe\nmodels:\n  primary: {source: a/b}\n\x07\n",
            "m.yaml:4: not YAML: special characters are not allowed",
            id="control-character",
        ),
    ],
)
def test_the_wrong_file(text: str, expected: str) -> None:
    assert problems(text) == [expected]


def test_yaml_syntax_errors_name_their_line() -> None:
    (found,) = problems("kind: LLMServe\nmodels:\n\tprimary: x\n")
    assert found.startswith("m.yaml:3: not YAML: ")
    (found,) = problems("kind: LLMServe\nmodels: {primary: [}\n")
    assert found.startswith("m.yaml:2: not YAML: ")
    (found,) = problems("kind: LLMServe\n---\nkind: LLMServe\n")
    assert found.startswith("m.yaml:2: not YAML: ")


def test_unknown_tags_are_refused() -> None:
    (found,) = with_sections("engine:\n  dtype: !!python/name:os.system x\n")
    assert found.startswith("m.yaml:6: engine.dtype: not YAML: could not determine a constructor")


def test_anchors_and_merge_keys() -> None:
    manifest = parse_manifest(
        MINIMAL
        + dedent("""\
        scheduling: &times
          queue_timeout_seconds: 5
          worker_expiry_seconds: 9
        engine:
          sim: &sim {blocks: 10}
        """),
        "m.yaml",
    )
    assert manifest.scheduling.worker_expiry_seconds == 9
    merged = MINIMAL + dedent("""\
    deployment:
      replicas: &base
        decode: 2
        prefill: 3
      local:
        port: 1
    engine:
      sim:
        <<: {blocks: 10, vocab_size: 99}
        blocks: 20
    """)
    manifest = parse_manifest(merged, "m.yaml")
    assert (manifest.engine.sim.blocks, manifest.engine.sim.vocab_size) == (20, 99)


def test_a_merged_problem_is_reported_where_it_is_written() -> None:
    found = with_sections("""\
    deployment:
      replicas: &wrong
        bogus: 1
    engine:
      sim:
        <<: *wrong
    """)
    assert found == [
        "m.yaml:7: deployment.replicas.bogus: unknown key",
        "m.yaml:7: engine.sim.bogus: unknown key",
    ]


def test_a_value_that_contains_itself_is_refused() -> None:
    (found,) = with_sections("engine: &e\n  sim: *e\n")
    assert found == "m.yaml:6: engine.sim: the value contains itself"


def test_deep_nesting_is_refused() -> None:
    (found,) = problems("kind: " + "[" * 5000 + "]" * 5000)
    assert found == "m.yaml:1: not YAML: nested too deeply"


def test_aliases_that_multiply_are_refused() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    found = problems("kind: LLMServe\n" + "\n".join(lines))
    assert any("too many values" in line for line in found)


def test_a_secret_is_never_shown() -> None:
    found = with_sections("""\
    security:
      api_keys:
        - {tenant: a, key: 123456}
        - {tenant: b, key: [sesame]}
        - {tenant: c, key_env: not-a-name-but-secret}
        - {tenant: d, kye: open-sesame}
    engine:
      env: [HF_TOKEN=sesame]
    """)
    text = "\n".join(found)
    assert "m.yaml:7: security.api_keys[0].key: expected text" in text
    for secret in ("123456", "sesame", "secret"):
        assert secret not in text


def test_load_reads_a_file(tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    path.write_text(MINIMAL)
    assert load_manifest(path) == parse_manifest(MINIMAL, "m.yaml")
    assert load_manifest(str(path)).kind == "LLMServe"


def test_load_says_why_a_file_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"gone\.yaml: there is no such file"):
        load_manifest(tmp_path / "gone.yaml")
    with pytest.raises(ManifestError, match="is a directory"):
        load_manifest(tmp_path)
    binary = tmp_path / "m.yaml"
    binary.write_bytes(b"kind: \xff\xfe")
    with pytest.raises(ManifestError, match=r"m\.yaml:1: is not UTF-8 text"):
        load_manifest(binary)
    binary.write_bytes(b"#" * 2_000_000)
    with pytest.raises(ManifestError, match="is larger than"):
        load_manifest(binary)


def test_a_near_miss_of_the_file_name_is_suggested(tmp_path: Path) -> None:
    (tmp_path / "llmserve.yaml").write_text(MINIMAL)
    with pytest.raises(ManifestError, match=r"did you mean .*llmserve\.yaml"):
        load_manifest(tmp_path / "llmserve.yml")


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("'*'", "*"),
        ("https://chat.example.com", "https://chat.example.com"),
        ("HTTPS://Chat.Example.com:443", "https://chat.example.com"),
        ("http://localhost:80", "http://localhost"),
        ("http://localhost:8080", "http://localhost:8080"),
        ("http://[::1]:3000", "http://[::1]:3000"),
        ("chrome-extension://abcdef", "chrome-extension://abcdef"),
    ],
)
def test_an_origin_is_kept_as_browsers_write_it(written: str, meant: str) -> None:
    manifest = parse_manifest(MINIMAL + f"security:\n  cors_origins:\n    - {written}\n", "m.yaml")
    assert manifest.security.cors_origins == (meant,)


@pytest.mark.parametrize(
    "wrong",
    ["chat.example.com", "https://", "https://a/", "https://a/b", "https://*.example.com", "'null'", "''"],
)
def test_what_is_no_origin_is_refused_with_its_line(wrong: str) -> None:
    (problem,) = with_sections(f"security:\n  cors_origins:\n    - https://right.example\n    - {wrong}\n")
    assert problem.startswith("m.yaml:8: security.cors_origins[1]: ")
    assert "is not an origin: an origin is SCHEME://HOST" in problem


def test_only_a_file_of_a_similar_name_is_suggested(tmp_path: Path) -> None:
    """However much of their paths is the same."""
    (tmp_path / "unrelated.yaml").touch()
    with pytest.raises(ManifestError) as raised:
        load_manifest(tmp_path / "mine.yaml")
    assert "did you mean" not in raised.value.message
    (tmp_path / "mines.yaml").touch()
    with pytest.raises(ManifestError, match=r"did you mean '.*/mines\.yaml'\?"):
        load_manifest(tmp_path / "mine.yaml")


def test_a_key_of_one_model_is_located_in_its_entry(tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    path.write_text(
        "kind: LLMServe\nmodels:\n- source: hub:a/one\n- source: hub:a/two\n  engine:\n    dtype: auto\n"
    )
    error = ManifestError("engine.dtype: no", key=("engine", "dtype"))
    assert located(error, path, "two").message == f"{path}:6: models[1].engine.dtype: no"
    assert located(error, path, "one").message == f"{path}:1: engine.dtype: no"
    assert located(error, path, "three") is error
