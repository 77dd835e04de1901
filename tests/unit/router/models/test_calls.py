"""What a load asks of an entry before the book knows it."""

from contextlib import nullcontext
from typing import Any, cast

import pytest

from llmserve.config.schema import Manifest
from llmserve.core.clock import VirtualClock
from llmserve.core.errors import InvalidRequest
from llmserve.router.models.book import ModelBook
from llmserve.router.models.calls import ModelCalls
from llmserve.rpc.gen.llmserve.v1 import router_pb2


class Loop:
    deciding = staticmethod(nullcontext)


@pytest.mark.parametrize("manages", [True, False])
def test_a_load_runs_no_code_that_the_manifest_does_not_name(manages: bool) -> None:
    manifest = Manifest.model_validate({"kind": "LLMServe", "models": {"primary": {"source": "hub:a/b"}}})
    book = ModelBook(VirtualClock(), lambda name: 0, lambda: (), drain_seconds=1.0, manages=manages)
    calls = ModelCalls(book, cast("Any", Loop()), cast("Any", None), manifest)
    entry = '{"source": "hub:c/d", "engine": {"options": {"trust_remote_code": true}}}'
    with pytest.raises(
        InvalidRequest, match="only the manifest may let code run" if manages else "Kubernetes"
    ):
        calls.load(router_pb2.LoadModelRequest(entry=entry))
    assert not list(book)
