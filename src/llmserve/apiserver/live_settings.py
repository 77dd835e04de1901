"""Settings that change while an apiserver runs, and the commands of the router that change them."""

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from llmserve.apiserver.auth.manifest_keys import ManifestKeys, load_keys
from llmserve.apiserver.request.rules import StageLimits
from llmserve.config.load import parse_manifest
from llmserve.config.schema import Manifest
from llmserve.core.errors import InvalidRequest, LLMServeError
from llmserve.rpc.gen.llmserve.v1 import router_pb2


@dataclass(frozen=True, slots=True)
class LiveSettings:
    """Settings that a reload changes in an apiserver that runs. explain_requests: number of requests to
    remember. cors_origins: origins of pages that may use the API in a browser."""

    keys: ManifestKeys
    cors_origins: tuple[str, ...]
    limits: StageLimits
    explain_requests: int
    log_level: str

    @classmethod
    def of(cls, manifest: Manifest, environment: Mapping[str, str] = os.environ) -> "LiveSettings":
        """Errors: ManifestError when a variable that should hold a key is not set."""
        return cls(
            keys=load_keys(manifest.security.api_keys, environment),
            cors_origins=manifest.security.cors_origins,
            limits=StageLimits.of(manifest.scheduling),
            explain_requests=manifest.observability.explain_requests,
            log_level=manifest.observability.log_level,
        )


_log = logging.getLogger(__name__)


class CommandHandler:
    """Carries out what the router asks of an apiserver. apply: takes over settings that were checked. find:
    returns the record of a request. rows: returns the latest requests. manifest_text: the manifest in
    force."""

    def __init__(
        self,
        apply: Callable[[LiveSettings], None],
        find: Callable[[router_pb2.RecordQuestion], bytes],
        rows: Callable[[router_pb2.RowsQuestion], bytes],
        manifest_text: str = "",
    ) -> None:
        self._apply, self._find, self._rows = apply, find, rows
        self.manifest_text = manifest_text

    def answer(self, question: router_pb2.Question) -> router_pb2.Answer:
        try:
            return router_pb2.Answer(number=question.number, record=self._record(question))
        except LLMServeError as error:
            name = type(error).__name__
            return router_pb2.Answer(number=question.number, error=name, message=error.message)
        except Exception as error:
            _log.exception("a question of the router was not answered")
            message = f"a defect, see the log: {type(error).__name__}"
            return router_pb2.Answer(number=question.number, error=LLMServeError.__name__, message=message)

    def _record(self, question: router_pb2.Question) -> bytes:
        match question.WhichOneof("about"):
            case "manifest":
                self._reload(question.manifest)
                return b""
            case "record":
                return self._find(question.record)
            case "rows":
                return self._rows(question.rows)
            case "echo":
                return b""
            case other:
                raise InvalidRequest(f"this apiserver knows nothing about {other or 'an empty question'}")

    def _reload(self, question: router_pb2.ManifestQuestion) -> None:
        """Errors: ManifestError, also for a key that is not in the environment."""
        settings = LiveSettings.of(parse_manifest(question.text, question.file))
        if not question.only_check:
            self._apply(settings)
            self.manifest_text = question.text
            _log.info("%s is in force from now on", question.file)
