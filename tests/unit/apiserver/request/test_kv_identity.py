import pytest

from llmserve.apiserver.request.rules import KvIdentity
from llmserve.core.blocks import chain_hashes
from llmserve.core.ids import AdapterDigest, TenantId
from llmserve.rpc.gen.llmserve.v1.common_pb2 import KvShape

RED, BLUE = TenantId("red"), TenantId("blue")
SHAPE = KvShape(
    model_revision="r1",
    kv_dtype="bfloat16",
    layout="LBHNC",
    block_size_tokens=4,
    tensor_parallel=1,
    pipeline_parallel=1,
    block_bytes=1000,
)


def changed(**fields: object) -> KvShape:
    shape = KvShape()
    shape.CopyFrom(SHAPE)
    for name, value in fields.items():
        setattr(shape, name, value)
    return shape


def test_tenants_are_apart_unless_they_share() -> None:
    apart, shared = KvIdentity(tenants_share=False), KvIdentity(tenants_share=True)
    assert apart.salt(SHAPE, RED) != apart.salt(SHAPE, BLUE)
    assert apart.salt(SHAPE, RED) == apart.salt(SHAPE, RED)
    assert shared.salt(SHAPE, RED) == shared.salt(SHAPE, BLUE)


def test_a_client_s_salt_keeps_it_apart_even_where_tenants_share() -> None:
    shared = KvIdentity(tenants_share=True)
    assert shared.salt(SHAPE, RED, "mine") != shared.salt(SHAPE, RED)


@pytest.mark.parametrize(
    "other",
    [
        {"model_revision": "r2"},
        {"kv_dtype": "fp8"},
        {"layout": "BLHNC"},
        {"block_size_tokens": 8},
        {"computation": "float16 up to 2048 tokens"},
        {"tensor_parallel": 2},
        {"pipeline_parallel": 2},
    ],
)
def test_all_that_makes_kv_differ_is_in_the_salt(other: dict[str, object]) -> None:
    identity = KvIdentity(tenants_share=True)
    assert identity.salt(SHAPE, RED) != identity.salt(changed(**other), RED)


def test_versions_of_adapters_are_apart_even_where_tenants_share() -> None:
    shared = KvIdentity(tenants_share=True)
    salts = {shared.salt(SHAPE, RED, "", AdapterDigest(digest)) for digest in ("", "a", "b")}
    assert len(salts) == 3


def test_hashes_are_those_that_the_engine_will_have() -> None:
    identity = KvIdentity(tenants_share=False)
    tokens = list(range(11))
    expected = chain_hashes(tokens, 4, identity.salt(SHAPE, RED, "mine"))
    assert identity.block_hashes(tokens, SHAPE, RED, "mine") == expected
    assert len(expected) == 2
    sql = AdapterDigest("a")
    salt = identity.salt(SHAPE, RED, "mine", sql)
    assert identity.block_hashes(tokens, SHAPE, RED, "mine", sql) == chain_hashes(tokens, 4, salt, sql)


def test_without_a_known_worker_there_are_none() -> None:
    assert KvIdentity(tenants_share=True).block_hashes([1, 2, 3], KvShape(), RED) == []
