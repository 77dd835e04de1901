"""The events of a stream that differ from each other only in their text.

vLLM builds and serializes three models for each token of a stream. Here its own event of one output becomes
the frame of those that follow: the text of each is put into a copy, which is sent at once. vLLM still makes
the first events, and every one that has something else in it (a finish, usage, an error).
"""

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from pydantic_core import to_json
from starlette.types import Send


class TextEvents:
    """The text events of one stream. send: of its response.

    last_event: the event of vLLM's that was sent last. Who sends these keeps it up to date."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._frame: tuple[bytes, bytes] | None = None  # what stands before and after the text
        self.last_event = ""

    async def others(self, outputs: AsyncIterator[Any], mark: str) -> AsyncGenerator[Any, None]:
        """Sends the events of outputs that are only text, once their frame is known. Yields all other
        outputs, for vLLM to make their events. Each comes with the tokens of those that were sent before it,
        so that vLLM counts them. mark: what stands before the text in an event, and nowhere else. outputs:
        RequestOutputs; of completions each with the index of its prompt."""
        sent_tokens: list[int] = []
        made_text: str | None = None  # of the event that vLLM has made last, if that was only text
        async for output in outputs:
            completion = (output[1] if isinstance(output, tuple) else output).outputs[0]
            is_text = bool(
                completion.finish_reason is None and completion.logprobs is None and completion.token_ids
            )
            if is_text and self._frame is None and made_text is not None:
                self._frame = _frame(self.last_event, mark, made_text)
            if is_text and self._frame is not None:
                before, after = self._frame
                event = b"%b%b%b" % (before, to_json(completion.text), after)
                await self._send({"type": "http.response.body", "body": event, "more_body": True})
                sent_tokens.extend(completion.token_ids)
                continue
            if sent_tokens:
                completion.token_ids = [*sent_tokens, *completion.token_ids]
                sent_tokens.clear()
            made_text = completion.text if is_text else None
            yield output


def _frame(event: str, mark: str, text: str) -> tuple[bytes, bytes] | None:
    """Returns what stands before and after the text of an event; None if that cannot be told."""
    before, found, after = event.partition(mark + to_json(text).decode())
    if not found or mark in before or mark in after:
        return None
    return (before + mark).encode(), after.encode()
