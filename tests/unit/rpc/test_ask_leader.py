"""What a caller hears when no router carries out what it asks for."""

from collections.abc import Sequence
from typing import Any

import grpc.aio
import pytest

from llmserve.core.errors import InvalidRequest, LLMServeError, NotLeader, Unavailable
from llmserve.rpc.leader import RouterAddresses, ask_leader
from llmserve.rpc.status import code_of, trailing_metadata

STANDBY = NotLeader("not the leader")
AWAY = Unavailable("no answer from apiserver-0: nothing was changed")


async def heard(*errors: LLMServeError) -> tuple[LLMServeError, int]:
    """The routers give these errors, in turn. Returns the one that is raised, and how many were asked."""
    asked = 0

    async def ask(stub: Any) -> None:
        nonlocal asked
        asked += 1
        raise _on_the_wire(errors[asked - 1])

    routers = RouterAddresses(tuple(f"127.0.0.1:{number}" for number in range(1, len(errors) + 1)))
    with pytest.raises(LLMServeError) as raised:
        await ask_leader(routers, ask)
    return raised.value, asked


def _on_the_wire(error: LLMServeError) -> grpc.aio.AioRpcError:
    nothing = grpc.aio.Metadata()
    named = grpc.aio.Metadata(*trailing_metadata(error))
    return grpc.aio.AioRpcError(code_of(error), nothing, named, error.message, "")


@pytest.mark.parametrize("errors", [(AWAY, STANDBY), (STANDBY, AWAY)])
async def test_what_the_leader_lacks_is_not_hidden_by_a_standby(errors: Sequence[LLMServeError]) -> None:
    error, asked = await heard(*errors)
    assert (type(error), error.message) == (Unavailable, AWAY.message)
    assert asked == 2


async def test_when_none_leads_that_is_said() -> None:
    error, _ = await heard(STANDBY, STANDBY)
    assert type(error) is NotLeader


async def test_a_refusal_ends_the_search() -> None:
    error, asked = await heard(InvalidRequest("wrong"), STANDBY)
    assert (type(error), asked) == (InvalidRequest, 1)


async def test_no_router() -> None:
    error, asked = await heard()
    assert (type(error), asked) == (Unavailable, 0)
