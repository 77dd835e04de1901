"""Tells the log and the calls that wait what becomes of models."""

import logging

from llmserve.config.wanted_models import ModelState
from llmserve.router.models.book import ModelBook
from llmserve.router.models.registration import ModelRegistration
from llmserve.router.waiting import WaitingCalls

_log = logging.getLogger(__name__)


class ModelWatch:
    """`look` is called after each decision. It costs one comparison when no model has changed."""

    def __init__(self, book: ModelBook) -> None:
        self._book, self._version = book, book.version
        self._known: dict[int, tuple[ModelRegistration, ModelState]] = {}
        self.calls = WaitingCalls()

    def look(self) -> None:
        if self._version == self._book.version:
            return
        self._version = self._book.version
        before, self._known = self._known, {one.number: (one, one.state) for one in self._book}
        for number, (one, old) in {**self._known, **before}.items():
            if number not in before or old is not one.state:
                _tell(one)
        self.calls.wake()


def _tell(one: ModelRegistration) -> None:
    level = logging.WARNING if one.state is ModelState.FAILED else logging.INFO
    details = one.message or f"from {one.source}"
    _log.log(level, "model %s (number %d) is %s: %s", one.name, one.number, one.state, details)
