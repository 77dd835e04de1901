"""What an apiserver is told besides the manifest."""

from dataclasses import dataclass
from pathlib import Path

from llmserve.core.shared_port import PortShare

DRAIN_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class ServedModel:
    """directory: config, tokenizer, chat template; its weights are not read here."""

    name: str
    directory: Path


@dataclass(frozen=True, slots=True)
class ApiserverOptions:
    """http, routers: host:port. max_body_bytes: of one HTTP request. drain_seconds: for running requests
    at the stop. manifest: the file, for `/admin/reload`. share: of a port that other processes serve too.
    compiles_ahead: the process that compiles grammars is started now, not by the first grammar."""

    name: str
    http: str
    routers: tuple[str, ...]
    model: ServedModel
    max_body_bytes: int = 32 * 1024 * 1024
    drain_seconds: float = DRAIN_SECONDS
    manifest: Path | None = None
    share: PortShare | None = None
    compiles_ahead: bool = False
