"""Adapters in a bucket: the objects `<prefix>/adapter_config.json` and `<prefix>/adapter_model.safetensors`.

Credentials come from the environment, as for the KV store.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import obstore

from llmserve.buckets.connect import BucketAddress, connect, shown
from llmserve.buckets.failures import TRANSIENT, FailureKind, failure_of
from llmserve.core.errors import LLMServeError, ModelNotFound, StartFailed, Unavailable

_T = TypeVar("_T")
_PIECE_BYTES = 8 << 20


class BucketPlace:
    def __init__(self, address: BucketAddress) -> None:
        self._name = shown(address.url)
        try:
            self._store = connect(address)
        except StartFailed as error:
            raise Unavailable(f"adapter '{self._name}': {error.message}") from None

    def size_bytes(self, name: str) -> int | None:
        def ask() -> int | None:
            try:
                return obstore.head(self._store, name)["size"]
            except FileNotFoundError:
                return None

        return self._asked(ask)

    def save(self, name: str, target: Path) -> None:
        pieces = self._asked(lambda: iter(obstore.get(self._store, name).stream(min_chunk_size=_PIECE_BYTES)))
        with target.open("wb") as file:
            while piece := self._asked(lambda: next(pieces, b"")):
                file.write(piece)

    def _asked(self, ask: Callable[[], _T]) -> _T:
        try:
            return ask()
        except Exception as error:
            raise self._refusal(error) from None  # the text of obstore may hold what is secret

    def _refusal(self, error: Exception) -> LLMServeError:
        failed = failure_of(error)
        if failed.kind in TRANSIENT or failed.kind is FailureKind.FULL:
            return Unavailable(f"adapter '{self._name}': the bucket is away: {failed.message}")
        return ModelNotFound(f"adapter '{self._name}': cannot be read from the bucket: {failed.message}")
