"""A changed manifest: everybody is asked first, and then everybody obeys."""

import asyncio
from collections.abc import Callable
from unittest.mock import Mock

import pytest

from llmserve.config.changes import Changes
from llmserve.config.load import parse_manifest
from llmserve.config.schema import Manifest
from llmserve.core.errors import InvalidRequest, ManifestError, Unavailable
from llmserve.core.ids import ApiserverId
from llmserve.router.commands import ManifestReload, OperatorCommands
from llmserve.router.streams import Broadcast
from llmserve.rpc.gen.llmserve.v1 import router_pb2

_BASE = "kind: LLMServe\nmodels: {primary: {source: 'hub:a/b'}}\n"
_FASTER = _BASE + "scheduling: {srpt_bias: 1}\n"
_SILENCE = None


class _Cluster:
    """Apiservers that answer as they are told: the text of an error, or SILENCE."""

    def __init__(self) -> None:
        self.polls = Broadcast(answer_seconds=0.05)
        self.answers: dict[str, Callable[[router_pb2.ManifestQuestion], str | None]] = {}
        self.asked: list[tuple[str, bool]] = []
        self.obeyed: list[Manifest] = []
        self.reloads = ManifestReload(parse_manifest(_BASE, "m.yaml"), self._ask, self._apply)

    def _apply(self, manifest: Manifest, changes: Changes) -> None:
        self.obeyed.append(manifest)

    async def _ask(self, question: router_pb2.Question):  # type: ignore[no-untyped-def]
        return await self.polls.ask({ApiserverId(n): self._sender(n) for n in self.answers}, question)

    def _sender(self, name: str) -> Callable[[router_pb2.RouterSessionResponse], None]:
        def send(response: router_pb2.RouterSessionResponse) -> None:
            question = response.question
            self.asked.append((name, question.manifest.only_check))
            said = self.answers[name](question.manifest)
            if said is not _SILENCE:
                error = "StartFailed" if said else ""
                answer = router_pb2.Answer(number=question.number, error=error, message=said)
                self.polls.answered(ApiserverId(name), answer)

        return send


@pytest.fixture
async def cluster() -> _Cluster:
    made = _Cluster()
    made.answers = {"api-0": lambda _: "", "api-1": lambda _: ""}
    return made


async def test_all_are_asked_and_then_all_obey(cluster: _Cluster) -> None:
    reloaded = await cluster.reloads.reload(_FASTER, "m.yaml")
    assert cluster.asked == [("api-0", True), ("api-1", True), ("api-0", False), ("api-1", False)]
    assert [str(one) for one in reloaded.changes.live] == ["scheduling.srpt_bias: 5.0 -> 1.0"]
    assert len(cluster.obeyed) == 1
    assert not reloaded.failed


async def test_a_question_changes_nothing(cluster: _Cluster) -> None:
    asked = await cluster.reloads.reload(_FASTER, "m.yaml", only_check=True)
    assert [str(one) for one in asked.changes.live] == ["scheduling.srpt_bias: 5.0 -> 1.0"]
    assert cluster.asked == [("api-0", True), ("api-1", True)]
    assert not cluster.obeyed
    assert cluster.reloads.pending() is None
    assert (await cluster.reloads.reload(_FASTER, "m.yaml")).changes == asked.changes


async def test_a_wrong_manifest_is_nobodys_business(cluster: _Cluster) -> None:
    with pytest.raises(ManifestError, match=r"m.yaml:3: scheduling.srpt_bias"):
        await cluster.reloads.reload(_BASE + "scheduling: {srpt_bias: -1}\n", "m.yaml")
    assert not cluster.asked
    assert not cluster.obeyed


async def test_one_that_objects_keeps_everything_as_it_was(cluster: _Cluster) -> None:
    cluster.answers["api-1"] = lambda _: "no KEY in the environment"
    with pytest.raises(InvalidRequest, match=r"api-1 cannot obey .* no KEY"):
        await cluster.reloads.reload(_FASTER, "m.yaml")
    assert not cluster.obeyed
    assert cluster.reloads.pending() is None
    cluster.answers["api-1"] = lambda _: ""
    assert (await cluster.reloads.reload(_FASTER, "m.yaml")).changes.live


async def test_one_that_is_silent_keeps_everything_as_it_was(cluster: _Cluster) -> None:
    cluster.answers["api-0"] = lambda _: _SILENCE
    with pytest.raises(Unavailable, match="no answer from api-0"):
        await cluster.reloads.reload(_FASTER, "m.yaml")
    assert not cluster.obeyed


async def test_who_does_not_confirm_is_named(cluster: _Cluster) -> None:
    cluster.answers["api-0"] = lambda question: "" if question.only_check else _SILENCE
    cluster.answers["api-1"] = lambda question: "" if question.only_check else "broke"
    reloaded = await cluster.reloads.reload(_FASTER, "m.yaml")
    assert set(reloaded.failed) == {"api-0: no answer", "api-1: broke"}
    assert len(cluster.obeyed) == 1


async def test_one_whose_session_ends_is_not_waited_for(cluster: _Cluster) -> None:
    cluster.answers["api-0"] = lambda _: _SILENCE
    cluster.polls = Broadcast(answer_seconds=60)
    reload = asyncio.create_task(cluster.reloads.reload(_FASTER, "m.yaml"))
    for _ in range(2):
        while not cluster.polls._open:  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0)
        cluster.polls.left(ApiserverId("api-0"))
        await asyncio.sleep(0)
    assert not (await reload).failed


async def test_without_apiservers_it_is_done_at_once(cluster: _Cluster) -> None:
    cluster.answers = {}
    assert (await cluster.reloads.reload(_FASTER, "m.yaml")).changes.live


async def test_who_comes_later_is_told(cluster: _Cluster) -> None:
    assert cluster.reloads.pending() is None
    await cluster.reloads.reload(_FASTER, "m.yaml")
    pending = cluster.reloads.pending()
    assert pending is not None
    assert (pending.manifest.text, pending.manifest.only_check) == (_FASTER, False)


async def test_a_late_or_unasked_answer_is_ignored(cluster: _Cluster) -> None:
    cluster.polls.answered(ApiserverId("api-0"), router_pb2.Answer(number=99))
    outcome = await cluster.polls.ask({}, router_pb2.Question())
    assert not outcome.answers


async def test_an_apiserver_that_cannot_list_its_requests_is_named_as_one_that_is_silent() -> None:
    answers = {"api-1": router_pb2.Answer(record=b"{}"), "api-2": router_pb2.Answer(error="InvalidRequest")}

    def send_to(name: str) -> Callable[[router_pb2.RouterSessionResponse], None]:
        def send(response: router_pb2.RouterSessionResponse) -> None:
            answers[name].number = response.question.number
            commands.answered(ApiserverId(name), answers[name])

        return send

    apiservers = {ApiserverId(name): send_to(name) for name in answers}
    commands = OperatorCommands(Mock(), Mock(), Mock(), Mock(), Mock(), lambda: apiservers, None)
    listed = await commands.list_requests(router_pb2.ListRequestsRequest(asker="api-0"))
    assert (list(listed.answers), list(listed.silent)) == ([b"{}"], ["api-2"])
