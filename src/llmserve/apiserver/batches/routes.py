"""`/v1/files` and `/v1/batches`, with the fields, answers and limits of OpenAI's API.

https://platform.openai.com/docs/api-reference/files and .../batch
"""

import re
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any, Literal
from urllib.parse import quote

from fastapi import FastAPI, Query, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, Field
from starlette.datastructures import FormData, UploadFile
from starlette.requests import ClientDisconnect

from llmserve.apiserver.batches.build import FILES_PATH
from llmserve.apiserver.batches.files import FileStore, NewFile
from llmserve.apiserver.batches.lines import ENDPOINTS
from llmserve.apiserver.batches.service import BatchService
from llmserve.apiserver.batches.store import NewBatch
from llmserve.apiserver.http.scope import current_scope
from llmserve.core.errors import Cancelled, InvalidRequest, StorageFull

_PIECE_BYTES = 1 << 20
_PURPOSE = "batch"
_WINDOW = re.compile(r"([1-9][0-9]{0,6})([smhd])")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_LONGEST_WINDOW_SECONDS = 30 * 86400
_SHORTEST_KEPT_SECONDS, _LONGEST_KEPT_SECONDS = 3600, 30 * 86400
_MOST_METADATA, _LONGEST_KEY, _LONGEST_VALUE = 16, 64, 512
_LONGEST_NAME = 255


class ExpiresAfter(BaseModel):
    """How long after its creation a file is deleted."""

    anchor: Literal["created_at"]
    seconds: int = Field(ge=_SHORTEST_KEPT_SECONDS, le=_LONGEST_KEPT_SECONDS)


class BatchBody(BaseModel):
    """The fields of a new batch. Fields that are not known are ignored, as OpenAI's clients add them."""

    input_file_id: str = Field(min_length=1)
    endpoint: str
    completion_window: str
    metadata: dict[str, str] | None = None
    output_expires_after: ExpiresAfter | None = None


def add_batches(app: FastAPI, service: BatchService | None, serves: Callable[[str], bool]) -> None:
    """service: None when batches are off; then there are no such routes. serves: whether any model serves a
    path by now."""
    if service is not None:
        _add_upload(app, service.parts.files)
        _add_files(app, service.parts.files)
        _add_batches(app, service, serves)


def _add_upload(app: FastAPI, files: FileStore) -> None:
    @app.post(FILES_PATH, openapi_extra=_UPLOAD)
    async def upload_file(request: Request) -> JSONResponse:
        """Keeps a file with requests of a batch (`purpose=batch`)."""
        try:
            async with request.form(max_files=1, max_fields=8) as form:
                file, new = _uploaded(form)
                return _answer(await files.upload(new, _pieces(file)))
        except ClientDisconnect:
            raise Cancelled("the client went away") from None
        except OSError as error:  # of the temporary file
            raise StorageFull(f"the upload could not be kept: {error.strerror}") from error


def _add_files(app: FastAPI, files: FileStore) -> None:
    @app.get(FILES_PATH)
    async def list_files(
        purpose: str | None = None,
        after: str | None = None,
        limit: int = Query(10_000, ge=1, le=10_000),
        order: Literal["asc", "desc"] = "desc",
    ) -> JSONResponse:
        """The files of the caller's tenant, the latest first."""
        found = [one for one in await files.of_tenant(_tenant()) if purpose in (None, one.purpose)]
        if order == "desc":
            found.reverse()
        later = [one for one in found if _comes_after(one.id, after, order)]
        return JSONResponse(_page(later[:limit], len(later) > limit))

    @app.get(f"{FILES_PATH}/{{file_id}}")
    async def retrieve_file(file_id: str) -> JSONResponse:
        """A file of the caller's tenant. 404 for any other."""
        return _answer(await files.get(_tenant(), file_id))

    @app.get(f"{FILES_PATH}/{{file_id}}/content")
    async def file_content(file_id: str) -> Response:
        """The contents of a file, as they are."""
        found = await files.get(_tenant(), file_id)
        headers = {
            "content-length": str(found.bytes),
            "content-disposition": f"attachment; filename*=UTF-8''{quote(found.filename, safe='')}",
        }
        return StreamingResponse(files.contents(file_id), headers=headers, media_type="application/jsonl")

    @app.delete(f"{FILES_PATH}/{{file_id}}")
    async def delete_file(file_id: str) -> JSONResponse:
        """Deletes a file. A batch that still reads it fails with what it has."""
        await files.delete(_tenant(), file_id)
        return JSONResponse({"id": file_id, "object": "file", "deleted": True})


def _add_batches(app: FastAPI, service: BatchService, serves: Callable[[str], bool]) -> None:
    files, store = service.parts.files, service.parts.store

    @app.post("/v1/batches")
    async def create_batch(body: BatchBody) -> JSONResponse:
        """Begins a batch. Its lines are looked at later: what is wrong with them stands in the batch."""
        new = _checked(body, [endpoint for endpoint in ENDPOINTS if serves(endpoint)])
        file = await files.get(_tenant(), body.input_file_id)
        if file.purpose != _PURPOSE:
            message = f"file {file.id} has the purpose {file.purpose!r}, and not {_PURPOSE!r}"
            raise InvalidRequest(message, field="input_file_id")
        await files.check_room(_tenant())
        batch = await store.create(current_scope().caller, new)
        service.wake()
        return _answer(batch)

    @app.get("/v1/batches")
    async def list_batches(after: str | None = None, limit: int = Query(20, ge=1, le=100)) -> JSONResponse:
        """The batches of the caller's tenant, the latest first."""
        return JSONResponse(_page(*await store.page(_tenant(), after, limit)))

    @app.get("/v1/batches/{batch_id}")
    async def retrieve_batch(batch_id: str) -> JSONResponse:
        """A batch of the caller's tenant. 404 for any other."""
        return _answer(await store.get(_tenant(), batch_id))

    @app.post("/v1/batches/{batch_id}/cancel")
    async def cancel_batch(batch_id: str) -> JSONResponse:
        """Ends a batch soon. Results that are there are kept."""
        return _answer(await store.cancel(_tenant(), batch_id))


def _tenant() -> Any:
    return current_scope().tenant


def _answer(one: BaseModel) -> JSONResponse:
    return JSONResponse(one.model_dump(mode="json"))


def _page(found: Any, has_more: bool) -> dict[str, Any]:
    return {
        "object": "list",
        "data": [one.model_dump(mode="json") for one in found],
        "first_id": found[0].id if found else None,
        "last_id": found[-1].id if found else None,
        "has_more": has_more,
    }


def _comes_after(file_id: str, after: str | None, order: str) -> bool:
    """Ids sort by age, so a page goes on where the last one ended, even if that file is gone."""
    return after is None or (file_id < after if order == "desc" else file_id > after)


# -- what clients send

_UPLOAD: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "purpose": {"type": "string", "enum": [_PURPOSE]},
                    },
                }
            }
        },
    }
}


def _uploaded(form: FormData) -> tuple[UploadFile, NewFile]:
    """Errors: InvalidRequest."""
    file, purpose = form.get("file"), form.get("purpose")
    if not isinstance(file, UploadFile):
        raise InvalidRequest("the form has no file in its field 'file'", field="file")
    if purpose != _PURPOSE:
        message = f"files are kept for batches only: purpose must be {_PURPOSE!r}, got {purpose!r}"
        raise InvalidRequest(message, field="purpose")
    name = (file.filename or "file")[:_LONGEST_NAME].encode(errors="replace").decode()
    return file, NewFile(_tenant(), name, _PURPOSE, _kept_seconds(form))


def _kept_seconds(form: FormData) -> float | None:
    anchor, seconds = form.get("expires_after[anchor]"), form.get("expires_after[seconds]")
    if anchor is None and seconds is None:
        return None
    allowed = range(_SHORTEST_KEPT_SECONDS, _LONGEST_KEPT_SECONDS + 1)
    given = str(seconds)
    if anchor != "created_at" or not (given.isdecimal() and len(given) < 9 and int(given) in allowed):
        message = (
            f"expires_after needs anchor=created_at and seconds from {allowed.start} to {allowed.stop - 1}"
        )
        raise InvalidRequest(message, field="expires_after")
    return float(given)


async def _pieces(file: UploadFile) -> AsyncIterator[bytes]:
    while piece := await file.read(_PIECE_BYTES):
        yield piece


def _checked(body: BatchBody, endpoints: Sequence[str]) -> NewBatch:
    """Errors: InvalidRequest."""
    for field, wrong in _wrong(body, endpoints):
        raise InvalidRequest(wrong, field=field)
    number, unit = _WINDOW.fullmatch(body.completion_window).groups()  # type: ignore[union-attr]
    after = body.output_expires_after
    return NewBatch(
        endpoint=body.endpoint,
        input_file_id=body.input_file_id,
        window=body.completion_window,
        window_seconds=float(int(number) * _UNITS[unit]),
        metadata=body.metadata,
        output_seconds=None if after is None else float(after.seconds),
    )


def _wrong(body: BatchBody, endpoints: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yields fields and what is wrong with them."""
    if body.endpoint not in endpoints:
        yield "endpoint", f"endpoint must be one of {', '.join(endpoints)}, got {body.endpoint!r}"
    window = _WINDOW.fullmatch(body.completion_window)
    if window is None or int(window[1]) * _UNITS[window[2]] > _LONGEST_WINDOW_SECONDS:
        what = "a number with s, m, h or d, such as '24h', of at most 30 days"
        yield "completion_window", f"completion_window must be {what}, got {body.completion_window!r}"
    metadata = body.metadata or {}
    if len(metadata) > _MOST_METADATA:
        yield "metadata", f"metadata may have {_MOST_METADATA} pairs, got {len(metadata)}"
    for key, value in metadata.items():
        if len(key) > _LONGEST_KEY or len(value) > _LONGEST_VALUE:
            yield "metadata", f"metadata: a key may have {_LONGEST_KEY} characters, a value {_LONGEST_VALUE}"
