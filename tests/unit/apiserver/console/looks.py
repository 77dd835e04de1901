"""What tests of the console look at."""

from llmserve.apiserver.auth.caller import ALL_SCOPES, CLIENT_SCOPES, Caller
from llmserve.apiserver.console.processes import ProcessTable
from llmserve.core.ids import TenantId

ADMIN = Caller(TenantId("ops"), ALL_SCOPES)
RED = Caller(TenantId("red"), CLIENT_SCOPES)


def table(*names: str, temp_dir: str = "") -> ProcessTable:
    roles = [
        {
            "name": name,
            "role": name.partition("-")[0],
            "stand": "ready",
            "detail": "",
            "pid": 7,
            "restarts": 0,
            "listen": f"{name}:1",
            "http": None,
            "log": f"{name}.log",
        }
        for name in names
    ]
    return ProcessTable("mine", roles=roles, temp_dir=temp_dir)
