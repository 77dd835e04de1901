"""Profiles of a worker's engine, one at a time, in pieces for whoever asked."""

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path

from llmserve.core.errors import InvalidRequest, Unavailable
from llmserve.engines.base import Engine
from llmserve.rpc.gen.llmserve.v1 import worker_pb2

_log = logging.getLogger(__name__)

LONGEST_SECONDS = 600.0
_PIECE_BYTES = 1 << 20


class Profiles:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._is_recording = False

    async def record(self, seconds: float) -> AsyncIterator[worker_pb2.ProfilePiece]:
        """Records for so long, and then yields all files. Errors: InvalidRequest, Unavailable
        (a profile is being recorded), EngineDead."""
        if not 0 < seconds <= LONGEST_SECONDS:
            raise InvalidRequest(f"a profile takes up to {LONGEST_SECONDS:g} s, got {seconds:g}")
        if self._is_recording:
            raise Unavailable("a profile of this worker is being recorded: try again when it has ended")
        self._is_recording = True
        try:
            _log.info("profile started: seconds=%g", seconds)
            files = await self._engine.profile(seconds)
            _log.info("profile complete: files=%d", len(files))
            try:
                for file in files:
                    async for piece in _pieces(file):
                        yield piece
            finally:
                for file in files:
                    file.unlink(missing_ok=True)
        finally:
            self._is_recording = False


async def _pieces(file: Path) -> AsyncIterator[worker_pb2.ProfilePiece]:
    with file.open("rb") as opened:
        while data := await asyncio.to_thread(opened.read, _PIECE_BYTES):
            yield worker_pb2.ProfilePiece(file=file.name, data=data)
