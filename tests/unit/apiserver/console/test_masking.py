"""A manifest is shown without its secrets, line by line as it is."""

import pytest

from llmserve.apiserver.console.masking import MASK, masked
from llmserve.core.errors import ManifestError

_TEXT = """\
kind: LLMServe
spec:
  security:
    api_keys:
      - {tenant: red, key: red-secret}
      - tenant: blue
        key: &shared "blue-secret"   # the old key: former-secret
      - tenant: green
        key: |
          green-secret
        key_env: GREEN_KEY
      - {tenant: grey, key: *shared}
    tls: {certificate: tls.crt, key: tls.key}
  engine:
    env:
      - {name: HF_TOKEN, value: token-secret}
      - {name: VLLM_ATTENTION_BACKEND, value: TORCH_SDPA}
  state:
    redis: {url: "redis://user:redis-secret@host:6379/0"}
# password: comment-secret
"""


def test_secrets_are_hidden_and_nothing_else() -> None:
    shown = masked(_TEXT)
    assert "secret" not in shown
    for kept in (
        "tenant: red",
        "key_env: GREEN_KEY",
        "key: tls.key",
        "TORCH_SDPA",
        "host:6379/0",
        "HF_TOKEN",
    ):
        assert kept in shown
    assert shown.count(MASK) == 7


@pytest.mark.parametrize(
    "line",
    [
        "security: {api_keys: [sk-red]}",
        "security: {api_keys: sk-red}",
        "security: {api_keys: [{key: [sk-red]}]}",
        "security: {api_keys: [{key: sk-red, key: sk-blue}]}",
        "security: {api_keys: [{kei: sk-red}]}",
        "x: &x {key: sk-red}\nsecurity: {api_keys: [{<<: *x}]}",
        "engine: {env: [{name: B_TOKEN, value: sk-red, value: sk-blue}]}",
        "engine: {env: [{name: A, name: B_TOKEN, value: sk-red}]}",
        "engine: {env: {HF_TOKEN: sk-red}}",
        "engine: {env: [HF_TOKEN=sk-red]}",
        "engine: {env: [{name: OTEL_EXPORTER_OTLP_HEADERS, value: 'Authorization=sk-red'}]}",
        "engine: {options: {hf_token: sk-red}}",
        "models: [{name: a, engine: {options: {hf_token: sk-red}}}]",
        "state: {redis: {url: 'redis://user:a@sk-red@host/0'}}",
        """state: {redis: {url: "redis://:it'sk-red@host/0"}}""",
        "state: {redis: {url: 'redis://:a/sk-red@host/0'}}",
        "# - {key: a}, {key: sk-red}",
        "# password: 'two sk-red'",
        "# HF_TOKEN=sk-red",
        "# - {name: HF_TOKEN, value: sk-red}",
        "# - name: HF_TOKEN\n#   value: sk-red",
    ],
)
def test_what_is_written_wrongly_or_is_a_comment_is_hidden_too(line: str) -> None:
    shown = masked(f"{line}\n")
    assert "sk-" not in shown
    assert MASK in shown


@pytest.mark.parametrize(
    "line",
    [
        "security: {api_keys: [{tenant: red, key_env: RED_KEY, models: [sk]}]}",
        "deployment: {k8s: {secret: mine, image_pull_secret: pull}}",
        "engine: {options: {max_num_batched_tokens: 8}, env: [{name: VLLM_USE_V1, value: '1'}]}",
        "security: {limits: {headers: 100, max_tokens: 5}}",
        "# key_env: RED_KEY",
    ],
)
def test_what_only_looks_like_a_secret_is_shown(line: str) -> None:
    assert masked(line) == line


@pytest.mark.parametrize("end", ["\n", "\r\n", "\x85", "\u2028"])
def test_a_secret_of_several_lines_keeps_its_lines(end: str) -> None:
    text = f'security: {{api_keys: [{{key: "a{end}  b"}}]}}{end}# key: a{end}kind: LLMServe\n'
    assert masked(text).splitlines()[-1] == "kind: LLMServe"
    assert len(masked(text).splitlines()) == len(text.splitlines())


def test_lines_stay_where_they_are() -> None:
    before, after = _TEXT.splitlines(), masked(_TEXT).splitlines()
    assert len(before) == len(after)
    assert [one for one, line in enumerate(before) if "tenant" in line] == [
        one for one, line in enumerate(after) if "tenant" in line
    ]


def test_a_manifest_without_secrets_is_shown_as_it_is() -> None:
    text = "kind: LLMServe\nmodels: {primary: {source: 'hub:a/b'}}\n"
    assert masked(text) == text
    assert masked("") == ""


@pytest.mark.parametrize(
    "text",
    [
        "security: {api_keys: [{key: secret}",
        "a: &a [*a]\n",
        "a: &a [x]\n"
        + "".join(
            f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
            for before, name in zip("abcdefgh", "bcdefghi", strict=True)
        ),
    ],
)
def test_what_cannot_be_searched_is_not_shown(text: str) -> None:
    with pytest.raises(ManifestError, match="not YAML, or too large"):
        masked(text)
