"""Messages of several pieces of memory by UCX's own C interface: ucxx has none in Python.

UCX gathers and scatters the pieces itself, so a message of hundreds of them costs hardly more than one of a
single piece. The interface is that of all UCX 1.x releases. The library is the one that ucxx has loaded.
"""

import ctypes
import os
from typing import Any

from llmserve.transfer.base import Int64Array

_IN_PROGRESS = 1
_EVERY_BIT = (1 << 64) - 1
_FIELDS = 1 << 3 | 1 << 6  # UCP_OP_ATTR_FIELD_DATATYPE and _MEMORY_TYPE: UCX would look it up for each piece
_DATATYPE_IOV = 2  # UCP_DATATYPE_IOV
_HOST_MEMORY = 0  # UCS_MEMORY_TYPE_HOST
_IS_REQUEST = (
    1 << 16
)  # UCP_OP_ATTR_FLAG_NO_IMM_CMPL: a receive returns a request even if its message is there
_TRUNCATED = -9  # UCS_ERR_MESSAGE_TRUNCATED
_LAST_ERROR = -100  # UCS_ERR_LAST: what a call returns is a request, or a status from here to 0


class _Param(ctypes.Structure):
    """UCX's ucp_request_param_t."""

    _fields_ = (
        ("op_attr_mask", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("request", ctypes.c_void_p),
        ("callback", ctypes.c_void_p),
        ("datatype", ctypes.c_uint64),
        ("user_data", ctypes.c_void_p),
        ("reply_buffer", ctypes.c_void_p),
        ("memory_type", ctypes.c_int),
        ("recv_info", ctypes.c_void_p),
        ("memory", ctypes.c_void_p),
    )


class _ReceiveInfo(ctypes.Structure):
    """UCX's ucp_tag_recv_info_t."""

    _fields_ = (("sender_tag", ctypes.c_uint64), ("length", ctypes.c_size_t))


class PiecesRequest:
    """A message in flight, or one that could not start. Its pieces are in use until it is over."""

    def __init__(
        self,
        messages: "PieceMessages",
        worker: int,
        returned: int,
        vectors: Int64Array,
        expected_bytes: int | None = None,
    ) -> None:
        """returned: what UCX's function returned. expected_bytes: of a message that is received; None: it is
        sent."""
        self._messages = messages
        self._worker = worker
        self._vectors = vectors  # UCX reads it until the message is over
        self._expected_bytes = expected_bytes
        status = ctypes.c_int64(returned).value
        self._request = 0 if _LAST_ERROR <= status <= 0 else returned
        self.failure = "" if self._request else messages.reason(status)

    @property
    def over(self) -> bool:
        if self._request:
            status = self._messages.status(self._request, self._expected_bytes)
            if status != _IN_PROGRESS:
                self._messages.free(self._request)
                self._request, self.failure = 0, self._messages.reason(status)
        return not self._request

    def cancel(self) -> None:
        """Lets a message end soon as failed, unless its bytes are on their way."""
        if not self.over:
            self._messages.cancel(self._worker, self._request)


class PieceMessages:
    """UCX's functions for messages. One thread at a time calls them."""

    def __init__(self) -> None:
        """Is called after ucxx was loaded. Errors: OSError."""
        ucp = ctypes.CDLL("libucp.so.0", os.RTLD_NOLOAD | os.RTLD_NOW)
        ucs = ctypes.CDLL("libucs.so.0", os.RTLD_NOLOAD | os.RTLD_NOW)
        pointer, number, size = ctypes.c_void_p, ctypes.c_uint64, ctypes.c_size_t
        self._send = _declared(ucp.ucp_tag_send_nbx, number, pointer, pointer, size, number, pointer)
        self._receive = _declared(
            ucp.ucp_tag_recv_nbx, number, pointer, pointer, size, number, number, pointer
        )
        self._sent = _declared(ucp.ucp_request_check_status, ctypes.c_int8, pointer)
        self._received = _declared(ucp.ucp_tag_recv_request_test, ctypes.c_int8, pointer, pointer)
        self.free = _declared(ucp.ucp_request_free, None, pointer)
        self.cancel = _declared(ucp.ucp_request_cancel, None, pointer, pointer)
        self._name = _declared(ucs.ucs_status_string, ctypes.c_char_p, ctypes.c_int8)
        self._send_param = _param(_FIELDS)
        self._receive_param = _param(_FIELDS | _IS_REQUEST)
        self._info = _ReceiveInfo()

    def send(self, endpoint: int, worker: int, vectors: Int64Array, tag: int) -> PiecesRequest:
        """endpoint, worker: UCX's handles. vectors: the address and length of each piece, none of them
        empty."""
        param = ctypes.byref(self._send_param)
        returned = self._send(endpoint, vectors.ctypes.data, len(vectors), tag, param)
        return PiecesRequest(self, worker, returned, vectors)

    def receive(self, worker: int, vectors: Int64Array, tag: int) -> PiecesRequest:
        param = ctypes.byref(self._receive_param)
        returned = self._receive(worker, vectors.ctypes.data, len(vectors), tag, _EVERY_BIT, param)
        return PiecesRequest(self, worker, returned, vectors, int(vectors[:, 1].sum()))

    def status(self, request: int, expected_bytes: int | None) -> int:
        """UCX takes a message that is shorter than its receive for a whole one. ucxx and this do not."""
        if expected_bytes is None:
            return int(self._sent(request))
        status = int(self._received(request, ctypes.byref(self._info)))
        return _TRUNCATED if status == 0 and self._info.length != expected_bytes else status

    def reason(self, status: int) -> str:
        """Returns nothing for a message that arrived."""
        return "" if status == 0 else str(self._name(status).decode())


def _param(mask: int) -> _Param:
    return _Param(op_attr_mask=mask, datatype=_DATATYPE_IOV, memory_type=_HOST_MEMORY)


def _declared(function: Any, result: Any, *arguments: Any) -> Any:
    function.restype, function.argtypes = result, arguments
    return function
