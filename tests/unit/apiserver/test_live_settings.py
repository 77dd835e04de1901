"""What the router asks of an apiserver."""

import pytest

from llmserve.apiserver.live_settings import CommandHandler, LiveSettings
from llmserve.core.errors import NotFound
from llmserve.rpc.gen.llmserve.v1 import router_pb2

_MANIFEST = "kind: LLMServe\nmodels: {primary: {source: 'hub:a/b'}}\n"


class _Apiserver:
    def __init__(self) -> None:
        self.obeyed: list[LiveSettings] = []
        self._questions = CommandHandler(self.obeyed.append, self._find, self._rows, _MANIFEST)

    @property
    def text(self) -> str:
        return self._questions.manifest_text

    def _find(self, question: router_pb2.RecordQuestion) -> bytes:
        if question.request_id == "defect":
            raise KeyError(question.request_id)
        if question.request_id != "known":
            raise NotFound("not here")
        return b"{}"

    def _rows(self, question: router_pb2.RowsQuestion) -> bytes:
        return f"{question.tenant} {question.limit}".encode()

    def rows(self) -> router_pb2.Answer:
        about = router_pb2.RowsQuestion(tenant="red", limit=3)
        return self._questions.answer(router_pb2.Question(number=11, rows=about))

    def manifest(self, text: str, *, only_check: bool = False) -> router_pb2.Answer:
        about = router_pb2.ManifestQuestion(text=text, file="m.yaml", only_check=only_check)
        return self._questions.answer(router_pb2.Question(number=7, manifest=about))

    def record(self, request_id: str) -> router_pb2.Answer:
        about = router_pb2.RecordQuestion(request_id=request_id)
        return self._questions.answer(router_pb2.Question(number=8, record=about))

    def nothing(self) -> router_pb2.Answer:
        return self._questions.answer(router_pb2.Question(number=9))

    def echo(self) -> router_pb2.Answer:
        return self._questions.answer(router_pb2.Question(number=10, echo=router_pb2.Echo()))


@pytest.fixture
def apiserver() -> _Apiserver:
    return _Apiserver()


def test_a_manifest_is_obeyed(apiserver: _Apiserver) -> None:
    answer = apiserver.manifest(_MANIFEST + "scheduling: {request_timeout_seconds: 5}\n")
    assert (answer.number, answer.error) == (7, "")
    assert apiserver.obeyed[0].limits.request == 5
    assert "request_timeout_seconds: 5" in apiserver.text


def test_a_check_changes_nothing(apiserver: _Apiserver) -> None:
    assert not apiserver.manifest(_MANIFEST + "# other\n", only_check=True).error
    assert not apiserver.obeyed
    assert apiserver.text == _MANIFEST


@pytest.mark.parametrize("only_check", [False, True])
@pytest.mark.parametrize(
    ("more", "told"),
    [
        ("scheduling: {srpt: 1}\n", "m.yaml:3: scheduling.srpt"),
        ("security: {api_keys: [{tenant: red, key_env: NO_SUCH_KEY}]}\n", "NO_SUCH_KEY"),
    ],
)
def test_what_cannot_be_obeyed_is_told(
    apiserver: _Apiserver, more: str, told: str, *, only_check: bool
) -> None:
    answer = apiserver.manifest(_MANIFEST + more, only_check=only_check)
    assert answer.error
    assert told in answer.message
    assert not apiserver.obeyed


def test_records(apiserver: _Apiserver) -> None:
    assert apiserver.record("known").record == b"{}"
    assert apiserver.record("other").error == "NotFound"


def test_rows(apiserver: _Apiserver) -> None:
    assert apiserver.rows().record == b"red 3"


def test_a_question_of_a_later_release(apiserver: _Apiserver) -> None:
    assert apiserver.nothing().error == "InvalidRequest"


def test_an_echo(apiserver: _Apiserver) -> None:
    assert apiserver.echo() == router_pb2.Answer(number=10)


def test_a_defect_is_told_and_does_not_end_the_apiserver(
    apiserver: _Apiserver, caplog: pytest.LogCaptureFixture
) -> None:
    answer = apiserver.record("defect")
    assert (answer.number, answer.error, answer.record) == (8, "LLMServeError", b"")
    assert "KeyError" in answer.message
    assert "Traceback" in caplog.text
