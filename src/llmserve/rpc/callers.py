"""The words for who calls inside a cluster: the role of a process, and its name."""

from dataclasses import dataclass
from enum import StrEnum


class CallerRole(StrEnum):
    """operator: somebody at a command line who may read the cluster's secret."""

    APISERVER = "apiserver"
    ROUTER = "router"
    WORKER = "worker"
    KVMANAGER = "kvmanager"
    MODELMANAGER = "modelmanager"
    OPERATOR = "operator"

    @classmethod
    def of_process(cls, role: str) -> "CallerRole":
        """Returns the role of whom is reached at the address of a process. role: as plans name it."""
        workers, control = ("prefill", "decode", "aggregated"), "control"
        return cls.WORKER if role in workers else cls.ROUTER if role == control else cls(role)


@dataclass(frozen=True, slots=True)
class CallerIdentity:
    role: CallerRole
    name: str
