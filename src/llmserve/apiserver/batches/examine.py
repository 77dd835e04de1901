"""Looks at the input file of a batch as a whole, before any of its lines runs."""

from collections.abc import AsyncIterable
from dataclasses import dataclass

from openai.types import BatchError

from llmserve.apiserver.batches.lines import BatchLine, LineProblem, LineReader

# Problems of a file that fails as a whole are told up to this number.
_MOST_PROBLEMS = 20


@dataclass(frozen=True, slots=True)
class ExaminedFile:
    """errors: why none of the lines can run; empty when one can. model: that of all good lines; None: they
    name several."""

    lines: int = 0
    model: str | None = None
    errors: tuple[BatchError, ...] = ()


async def examine(texts: AsyncIterable[tuple[int, bytes]], endpoint: str, max_lines: int) -> ExaminedFile:
    """texts: numbered lines. Reads no further than one line too many."""
    reader, total, models, problems = LineReader(endpoint), 0, set[str](), list[LineProblem]()
    async for number, text in texts:
        total += 1
        line = reader.read(number, text)
        if isinstance(line, BatchLine):
            models.add(line.model)
        elif len(problems) < _MOST_PROBLEMS:
            problems.append(line)
        if total > max_lines:
            message = f"the file has more than {max_lines} lines (batches.max_lines)"
            return _refused(BatchError(code="too_many_requests", message=message))
    if not total:
        return _refused(BatchError(code="empty_file", message="the file has no lines"))
    if not models:
        return _refused(
            *(BatchError(code=one.code, message=one.message, line=one.number) for one in problems)
        )
    return ExaminedFile(total, models.pop() if len(models) == 1 else None)


def _refused(*errors: BatchError) -> ExaminedFile:
    return ExaminedFile(errors=errors)
