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
