"""The settings of the router as they are now: what a reload changes."""

from dataclasses import replace

from llmserve.config.changes import Changes
from llmserve.config.schema import Manifest
from llmserve.router.controller import Controller
from llmserve.router.decider import Decider
from llmserve.router.settings import RouterSettings
from llmserve.rpc.role import set_log_level


class InForce:
    def __init__(self, controller: Controller, decider: Decider, settings: RouterSettings) -> None:
        self.settings = settings
        self._controller, self._decider = controller, decider

    def obey(self, manifest: Manifest, changes: Changes) -> None:
        """All but the times of terms, which need a restart. Errors: NotLeader."""
        terms, level = self.settings.terms, self.settings.log_level
        if any(change.path == "observability.log_level" for change in changes.live):
            level = manifest.observability.log_level
        settings = replace(RouterSettings.of(manifest), terms=terms, log_level=level)
        self._decider.decide(lambda: self._controller.reconfigure(settings.parameters))
        if level != self.settings.log_level:
            set_log_level(level)
        self.settings = settings
