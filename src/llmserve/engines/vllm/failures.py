"""Why vLLM did not start: the manifest's key that it is about, and whether another try may end otherwise.

vLLM's own process tells its cause in its log alone; who waits for it reads "see root cause above". So each
process of an engine also writes the exception that ended its start into a file (`CauseHandler`).
"""

import json
import logging
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llmserve.config.conflict import Conflict
from llmserve.config.refusals import MODEL_SOURCE
from llmserve.core.errors import LLMServeError, ManifestError, StartFailed

_CAUSE_FILE = "cause.json"
_LOGGING_FILE = "logging.json"
_HANDLER = "llmserve-cause"
_ENDED = "failed to start"  # "EngineCore failed to start.", "WorkerProc failed to start."
_MOST_CHARACTERS = 300

# They name a setting, a model, a package or a device: they come again with the next try.
_LASTING = (ValueError, TypeError, KeyError, NotImplementedError, ImportError, FileNotFoundError)
_LASTING_WORDS = re.compile(
    r"No CUDA GPUs|no NVIDIA driver|infer device type|not compiled with CUDA|deserializing header", re.I
)
_PASSING_WORDS = re.compile(r"Free memory on device|out of memory|address already in use", re.I)
# What vLLM's words are about. The first that fits counts.
_KEYS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (r"KV cache is needed|memory for the cache blocks|out of memory|Free memory", ("kv_cache", "memory_gb")),
    (r"max_model_len|max seq len", ("engine", "max_model_len")),
    (r"max_num_batched_tokens", ("engine", "max_batched_tokens")),
    (r"max_num_seqs", ("engine", "max_decode_concurrency")),
    (r"tool.?(call.?)?parser", ("engine", "tool_call_parser")),
    (r"reasoning.?parser", ("engine", "reasoning_parser")),
    (r"kv_cache_dtype|fp8", ("kv_cache", "hbm_dtype")),
    (r"block.?size", ("kv_cache", "block_size_tokens")),
    (r"tensor.?parallel|attention heads", ("engine", "tensor_parallel")),
    (r"\bdtype|bfloat16|float16", ("engine", "dtype")),
    (r"CUDA|NVML|NVIDIA|device type|OMP_THREADS_BIND", ("engine", "device")),
    (
        r"architecture|model type|safetensors|deserializing|weights?|tokenizer|config\.json",
        MODEL_SOURCE,
    ),
)
_ENGINE = ("engine",)


@dataclass(frozen=True, slots=True)
class Cause:
    """lasts: another try would end alike. key: of the manifest, when the exception is ours and names one."""

    message: str
    lasts: bool
    key: tuple[str | int, ...] = ()

    @classmethod
    def of(cls, error: BaseException) -> "Cause":
        message = str(error) or type(error).__name__
        if isinstance(error, ManifestError):
            return cls(message, True, error.key)
        of_transformers = type(error) is OSError and error.errno is None  # a file that the model lacks
        lasts = isinstance(error, _LASTING) or of_transformers or bool(_LASTING_WORDS.search(message))
        return cls(message, lasts and not _PASSING_WORDS.search(message))

    def as_error(self) -> LLMServeError:
        """ManifestError when it lasts, else StartFailed."""
        if self.key:
            return ManifestError(self.message, key=self.key)
        key = next((key for words, key in _KEYS if re.search(words, self.message, re.IGNORECASE)), _ENGINE)
        found = Conflict((key,), f"vLLM does not start: {_first_sentence(self.message)}").as_error()
        return found if self.lasts else StartFailed(found.message)


def _first_sentence(text: str) -> str:
    """Returns the first sentence; of pydantic's errors, the message of the check itself."""
    if found := re.search(r"(?:Value|Assertion) error, (.*?)(?: \[type=|$)", text, re.DOTALL):
        text = found[1]
    line = next((line for line in text.splitlines() if line.strip()), "")
    return re.split(r"(?<=[^.A-Z])\. ", line.strip())[0][:_MOST_CHARACTERS].rstrip(".")


class CauseHandler(logging.Handler):
    """Writes the exception that ends a start. vLLM makes one in each process of an engine, by its name; the
    first counts, for the others only pass it on."""

    def __init__(self, path: str) -> None:
        super().__init__(logging.ERROR)
        self._path = Path(path)

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if error is None or _ENDED not in record.getMessage():
            return
        with suppress(OSError), self._path.open("x") as file:
            json.dump(asdict(Cause.of(error)), file)


def write_logging(scratch: Path, logging_config: Mapping[str, Any]) -> Path:
    """The same logging (a dictConfig) with a CauseHandler, as a file in an engine's scratch directory."""
    vllm = {"handlers": [], **logging_config.get("loggers", {}).get("vllm", {})}
    made = {
        **logging_config,
        "handlers": {
            **logging_config.get("handlers", {}),
            _HANDLER: {"()": f"{__name__}.{CauseHandler.__name__}", "path": str(scratch / _CAUSE_FILE)},
        },
        "loggers": {
            **logging_config.get("loggers", {}),
            "vllm": {**vllm, "handlers": [*vllm["handlers"], _HANDLER]},
        },
    }
    path = scratch / _LOGGING_FILE
    path.write_text(json.dumps(made))
    return path


def read_cause(scratch: Path) -> Cause | None:
    """Returns what a process of the engine wrote there; None when it wrote nothing, as when it was killed."""
    with suppress(OSError, ValueError, TypeError, KeyError):
        fields = json.loads((scratch / _CAUSE_FILE).read_text())
        return Cause(fields["message"], fields["lasts"], tuple(fields["key"]))
    return None
