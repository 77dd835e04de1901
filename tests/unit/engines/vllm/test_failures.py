"""Why vLLM did not start, from its words to the manifest's key; without vLLM."""

import json
import logging
import logging.config
from pathlib import Path

import pytest

from llmserve.core.errors import ManifestError, StartFailed
from llmserve.engines.vllm.failures import Cause, read_cause, write_logging

PYDANTIC = """\
1 validation error for ModelConfig
  Value error, User-specified max_model_len (9000) is greater than the derived max_model_len \
(max_position_embeddings=8192). To allow overriding this maximum, set it. [type=value_error, input_value=1]
    For further information visit https://errors.pydantic.dev/2.12/v/value_error"""
KV = (
    "To serve at least one request with the model's max seq len (8192), (0.18 GiB KV cache is needed, which "
    "is larger than the available KV cache memory (0.1 GiB). Try increasing it."
)


@pytest.mark.parametrize(
    ("error", "key", "words"),
    [
        (ValueError(PYDANTIC), ("engine", "max_model_len"), "(max_position_embeddings=8192)"),
        (ValueError(KV), ("kv_cache", "memory_gb"), "To serve at least one request"),
        (KeyError("invalid tool call parser: nope"), ("engine", "tool_call_parser"), "nope"),
        (ValueError("Model architectures ['X'] are not supported"), ("models", "primary", "source"), "['X']"),
        (RuntimeError("No CUDA GPUs are available"), ("engine", "device"), "No CUDA GPUs"),
        (
            OSError("/m does not appear to have a file named config.json"),
            ("models", "primary", "source"),
            "/m",
        ),
        (
            Exception("Error while deserializing header: file not fully covered"),  # of safetensors
            ("models", "primary", "source"),
            "file not fully covered",
        ),
        (ImportError("libfoo.so"), ("engine",), "libfoo.so"),
        (NotImplementedError(), ("engine",), "NotImplementedError"),
    ],
)
def test_what_another_try_would_not_cure(error: Exception, key: tuple[str, ...], words: str) -> None:
    found = Cause.of(error).as_error()
    assert isinstance(found, ManifestError)
    assert found.key == key
    assert found.message.startswith(f"{'.'.join(key)}: vLLM does not start: ")
    assert words in found.message
    assert not [more for more in ("\n", "[type=", ". ") if more in found.message]


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Engine core initialization failed. Failed core proc(s): {'EngineCore': -9}"),
        RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"),
        ValueError("Free memory on device (1/80 GiB) on startup is less than desired"),
        OSError(28, "No space left on device"),
        OSError(98, "Address already in use"),
    ],
)
def test_what_may_pass(error: Exception) -> None:
    assert isinstance(Cause.of(error).as_error(), StartFailed)


def test_an_error_of_ours_keeps_its_key() -> None:
    error = ManifestError("engine.device: no", key=("engine", "device"))
    found = Cause.of(error).as_error()
    assert isinstance(found, ManifestError)
    assert (found.message, found.key) == (error.message, error.key)


@pytest.fixture
def plain() -> dict[str, object]:
    """As vLLM's own logging, with what it has there."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "handlers": {"vllm": {"class": "logging.NullHandler"}},
        "loggers": {"vllm": {"handlers": ["vllm"], "level": "INFO", "propagate": False}},
    }


def _log(words: str, error: Exception) -> None:
    """As a process of the engine does."""
    try:
        raise error
    except type(error):
        logging.getLogger("vllm.v1.engine.core").exception(words)


def test_the_first_process_that_fails_to_start_leaves_word(tmp_path: Path, plain: dict[str, object]) -> None:
    path = write_logging(tmp_path, plain)
    before = logging.getLogger("vllm").handlers
    try:
        logging.config.dictConfig(json.loads(path.read_text()))
        assert [type(one).__name__ for one in logging.getLogger("vllm").handlers] == [
            "NullHandler",
            "CauseHandler",
        ]
        _log("some other trouble", ValueError("which is no end"))
        assert read_cause(tmp_path) is None
        _log("WorkerProc failed to start.", ValueError("no kernel for this"))
        _log("EngineCore failed to start.", RuntimeError("see above"))
    finally:
        logging.getLogger("vllm").handlers = before
    assert read_cause(tmp_path) == Cause("no kernel for this", lasts=True)


def test_half_a_word_is_none(tmp_path: Path) -> None:
    (tmp_path / "cause.json").write_text('{"message"')
    assert read_cause(tmp_path) is None


def test_json_logs_tell_it_too(tmp_path: Path) -> None:
    """There vLLM's loggers have no handler, and pass everything on."""
    made = json.loads(
        write_logging(
            tmp_path, {"version": 1, "loggers": {"vllm": {"handlers": [], "propagate": True}}}
        ).read_text()
    )
    assert made["loggers"]["vllm"] == {"handlers": ["llmserve-cause"], "propagate": True}
