"""What clients send. Each function imports its decoder when it is called: what is fuzzed is instrumented
then."""

import json
import tempfile
from pathlib import Path
from typing import Any

from bench.fuzz.case import DEEP, FuzzCase, as_json

_KINDS = ("json", "regex", "grammar", "choice", "structural_tag")
_STEPS = 4


def http_body() -> FuzzCase:
    from llmserve.apiserver.http.body import FIELDS, check_body, with_fields
    from llmserve.apiserver.limits.fields import check_fields
    from llmserve.apiserver.limits.media import check_media, may_have_urls
    from llmserve.config.schema.limits import SecurityLimits
    from llmserve.core.errors import InvalidRequest

    limits = SecurityLimits()

    def decode(data: bytes) -> None:
        check_body([(b"content-type", b"application/json")], data)
        fields = with_fields({"body": data})[FIELDS]
        if fields is not None:
            check_fields(fields, limits)
            if may_have_urls(data):
                check_media(fields, {"a.com"})

    valid = as_json(n=1, stop=["a"], prompt="a", messages=[{"content": [{"image_url": "http://a/"}]}])
    return FuzzCase(decode, (InvalidRequest,), (valid, DEEP))


def batch_lines() -> FuzzCase:
    from llmserve.apiserver.batches.lines import LineReader, parse_result

    def decode(data: bytes) -> None:
        reader = LineReader("/v1/completions")
        for number, line in enumerate(data.split(b"\n")):
            reader.read(number, line)
            parse_result(line)

    valid = as_json(custom_id="a", method="POST", url="/v1/completions", body={"model": "a"})
    return FuzzCase(decode, (), (valid, DEEP))


def grammar() -> FuzzCase:
    """What the child that compiles does, and then what an engine does with a grammar that compiled there. The
    first byte chooses the kind. Whatever a compiler raises is an answer to the client; what ends the process,
    hangs or takes gigabytes is a find."""
    from llmserve.apiserver.grammars.compiler import GrammarCompiler
    from llmserve.apiserver.http.app import serving_args, vllm_config
    from llmserve.apiserver.options import ModelDirectory
    from llmserve.config.schema import Api, EngineConfig
    from tests.support.tiny_llama import make_tiny_llama

    folder = make_tiny_llama(Path(tempfile.mkdtemp()) / "model", seed=1)
    args = serving_args(ModelDirectory("tiny", folder), EngineConfig(max_model_len=256), Api())
    compiler = GrammarCompiler(vllm_config(args))

    def constraint(kind: str, text: str) -> dict[str, Any]:
        return {kind: text.split("\n") if kind == "choice" else text}

    def decode(data: bytes) -> None:
        kind, text = _KINDS[data[0] % len(_KINDS)] if data else "json", data[1:].decode(errors="replace")
        task = {"constraint": constraint(kind, text), "stop_token_ids": []}
        if (compiled := compiler.compiled(task)) is not None:
            _use(compiled)

    schema = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"enum": ["x", None]}}}
    texts = {
        "json": (json.dumps(schema), '{"type": "array", "items": {"$ref": "#"}, "maxItems": 3}', "[" * 300),
        "regex": ("(ab|c)*d{2,3}[^x-z]?", "a{1000}", "("),
        "grammar": ('root ::= "a" [b-c]* (root | "d")?', "?start: NAME\nNAME: /a/", "root ::= root"),
        "choice": ("yes\nno", "\n"),
        "structural_tag": (json.dumps({"type": "structural_tag", "format": {"type": "any_text"}}),),
    }
    seeds = [bytes([_KINDS.index(kind)]) + text.encode() for kind, some in texts.items() for text in some]
    return FuzzCase(decode, (Exception,), seeds)


def _use(compiled: Any) -> None:
    """Draws the first tokens that the grammar allows, as an engine would."""
    for _ in range(_STEPS):
        words = compiled.mask[0].tolist()
        allowed = [32 * at + bit for at, word in enumerate(words) for bit in range(32) if word >> bit & 1]
        if not allowed or compiled.grammar.is_terminated():
            return
        compiled.grammar.accept_tokens("r", allowed[-1:])
        compiled.grammar.fill_bitmask(compiled.mask, 0)
