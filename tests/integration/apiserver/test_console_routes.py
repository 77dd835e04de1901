"""What /openapi.json says of the console's data, and what is answered."""

import json
from typing import Any
from unittest.mock import Mock

import jsonschema
import pytest
from fastapi import FastAPI

from llmserve.apiserver.console.events import encode
from llmserve.apiserver.console.routes import add_console
from llmserve.overview.parts import kv_part, tenants_part
from llmserve.overview.snapshot import Answers, snapshot
from llmserve.overview.views import as_json
from llmserve.rpc.gen.llmserve.v1 import common_pb2, kvmanager_pb2, router_pb2
from tests.unit.apiserver.console.looks import table

_SPEED = router_pb2.MeasuredSpeed(stage="first token", seconds=0.2)
_PAIR = common_pb2.TransportPair(peer="prefill-0", transport="tcp", bytes=7)
_WORKER = router_pb2.WorkerStatus(
    info=common_pb2.WorkerInfo(worker_id="decode-0", role=common_pb2.WORKER_ROLE_DECODE),
    load=common_pb2.WorkerLoad(pairs=[_PAIR], speculation=common_pb2.Speculation(verifications=1)),
    speeds=[_SPEED],
)
_NOW = snapshot(
    table("decode-0", "router-0"),
    Answers(
        router=router_pb2.GetClusterStatusResponse(
            workers=[_WORKER],
            tenants=[router_pb2.TenantStatus(tenant="red")],
            budgets=[router_pb2.BudgetStatus(name="a rate")],
            prefix_index=router_pb2.PrefixIndexStatus(hottest=[router_pb2.HotPrefix(block_hash=b"1")]),
        ),
        kvmanager=kvmanager_pb2.GetKvStatusResponse(tiers=[kvmanager_pb2.TierStatus(name="memory")]),
    ),
    1.0,
)


@pytest.mark.parametrize(
    ("path", "answered"),
    [("status", as_json(_NOW)), ("tenants", tenants_part(_NOW)), ("kv", kv_part(_NOW))],
)
def test_answers_are_described_in_whole(path: str, answered: dict[str, Any]) -> None:
    app = FastAPI()
    add_console(app, Mock())
    description = app.openapi()
    answers = description["paths"][f"/admin/v1/{path}"]["get"]["responses"]
    schema = answers["200"]["content"]["application/json"]["schema"]
    jsonschema.validate(json.loads(encode(answered)), {**schema, "components": description["components"]})
    shape = description["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    assert set(shape["properties"]) == set(answered)
