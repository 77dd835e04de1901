from llmserve.core.ids import ApiserverId
from llmserve.router.sessions import RouterSession
from llmserve.router.streams import RouterOutbox, SessionStream, SessionStreams
from llmserve.rpc.gen.llmserve.v1.router_pb2 import Placed, RouterSessionResponse

MESSAGE = RouterSessionResponse(placed=Placed(request_id="r"))


def _stream() -> SessionStream:
    return SessionStream(RouterSession(ApiserverId("a")), RouterOutbox())


async def _sent(stream: SessionStream) -> list[RouterSessionResponse]:
    stream.outbox.close()
    return [message async for batch in stream.outbox for message in batch.messages]


async def test_what_is_for_an_older_session_does_not_reach_the_newer_one() -> None:
    streams, older, newer = SessionStreams(), _stream(), _stream()
    assert streams.add(older) is None
    assert streams.add(newer) is older
    assert streams.next(older.session) is None
    message = streams.next(newer.session)
    assert message is not None
    message.CopyFrom(MESSAGE)
    assert (await _sent(older), await _sent(newer)) == ([], [MESSAGE])


async def test_one_that_was_replaced_does_not_take_the_newer_one_with_it() -> None:
    streams, older, newer = SessionStreams(), _stream(), _stream()
    streams.add(older)
    streams.add(newer)
    assert not streams.drop(older)
    assert streams.drop(newer)
    assert not streams.drop(newer)
    assert not streams.senders()


async def test_all_sessions_hear_that_places_are_wanted_later_ones_too() -> None:
    streams, early, late = (
        SessionStreams(),
        _stream(),
        SessionStream(RouterSession(ApiserverId("b")), RouterOutbox()),
    )
    streams.add(early)
    streams.want_places(True)
    streams.add(late)
    for stream in (early, late):
        stream.outbox.close()
        assert [batch.places_wanted async for batch in stream.outbox] == [True]
