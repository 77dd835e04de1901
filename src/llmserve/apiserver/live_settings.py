"""What a reload of the manifest changes in an apiserver that runs."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from llmserve.apiserver.auth import ApiKeys, load_keys
from llmserve.apiserver.stages import StageLimits
from llmserve.config.schema import Manifest


@dataclass(frozen=True, slots=True)
class LiveSettings:
    """explain_requests: how many are remembered. cors_origins: whose pages may use the API in a browser."""

    keys: ApiKeys
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
