"""Records as tests need them."""

from array import array

from llmserve.loadgen.answer import AnswerFailure, Failure, LoadRecord


def served(
    planned: float = 0.0,
    first: float = 0.5,
    gaps: tuple[float, ...] = (0.1, 0.1),
    *,
    tenant: str = "default",
    kind: str = "short",
    conversation: int = 0,
    output_tokens: int | None = None,
    prompt_tokens: int = 10,
    adapter: str = "",
) -> LoadRecord:
    """first: seconds after planned."""
    last = planned + first + sum(gaps)
    tokens = len(gaps) + 1 if output_tokens is None else output_tokens
    return LoadRecord(
        conversation=conversation,
        turn=0,
        kind=kind,
        tenant=tenant,
        planned_at=planned,
        sent_at=planned,
        first_at=planned + first,
        last_at=last,
        ended_at=last,
        wanted_prompt_tokens=10,
        wanted_output_tokens=tokens,
        prompt_tokens=prompt_tokens,
        output_tokens=tokens,
        gaps=array("d", gaps),
        adapter=adapter,
    )


def failed(
    message: str = "no", status: int = 429, *, planned: float = 0.0, tenant: str = "default"
) -> LoadRecord:
    return LoadRecord(
        conversation=0,
        turn=0,
        kind="short",
        tenant=tenant,
        planned_at=planned,
        sent_at=planned,
        first_at=planned,
        last_at=planned,
        ended_at=planned + 0.1,
        wanted_prompt_tokens=10,
        wanted_output_tokens=5,
        prompt_tokens=10,
        output_tokens=0,
        failure=Failure(AnswerFailure.HTTP, message, status),
    )
