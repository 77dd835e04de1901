"""`storageClasses`: what is accepted, and what is refused with its line and path."""

import pytest

from llmserve.config.load import parse_manifest
from llmserve.config.schema import Manifest, StorageFormat
from llmserve.core.errors import ManifestError

HEAD = "kind: LLMServe\nmodels: {primary: {source: hub:org/name}}\n"
DRAM = "  - {name: fast, tier: dram, capacity_gb: 8}\n"
CLASSES = HEAD + "storageClasses:\n" + DRAM


def parsed(text: str) -> Manifest:
    return parse_manifest(text, "m.yaml")


def refused(text: str) -> list[str]:
    with pytest.raises(ManifestError) as failed:
        parsed(text)
    return str(failed.value.message).splitlines()


ALL = """\
  - name: disk
    tier: nvme
    capacity_gb: 100
    location: /var/lib/llmserve/kv
    write: back
    format: {quantize: int8, compress: zstd}
  - name: bucket
    tier: object
    capacity_gb: 1000
    location: s3://kv/blocks
    endpoint: http://127.0.0.1:9000
    region: us-east-1
    write: through
    format:
      encrypt:
        - {id: k1, env: KV_KEY_1}
        - {id: k2, file: /run/secrets/kv}
kv_cache: {hot_keep_secs: 2.5, tenant_hotset_gb: 1}
security: {api_keys: [{tenant: a, key: x, kv_quota_gb: 2}, {tenant: a, key: y}]}
"""


def test_dram_can_be_quantized() -> None:
    [one] = parsed(CLASSES.replace("gb: 8", "gb: 8, format: {quantize: fp8}")).storageClasses
    assert one.format.quantize == "fp8"


def test_all_of_it() -> None:
    manifest = parsed(CLASSES + ALL)
    dram, disk, bucket = manifest.storageClasses
    assert dram.format == StorageFormat()
    assert (disk.format.quantize, disk.format.compress, disk.write) == ("int8", "zstd", "back")
    assert [(key.id, key.env, key.file) for key in bucket.format.encrypt] == [
        ("k1", "KV_KEY_1", None),
        ("k2", None, "/run/secrets/kv"),
    ]
    assert (bucket.endpoint, bucket.region) == ("http://127.0.0.1:9000", "us-east-1")
    assert manifest.kv_cache.hot_keep_secs == 2.5
    assert [key.kv_quota_gb for key in manifest.security.api_keys] == [2.0, None]


def nvme(rest: str) -> str:
    return f"{CLASSES}  - {{name: disk, tier: nvme, capacity_gb: 9, location: /kv{rest}}}\n"


def bucket(rest: str) -> str:
    return f"{CLASSES}  - {{name: far, tier: object, capacity_gb: 9, location: {rest}}}\n"


def dram(rest: str) -> str:
    return f"{HEAD}storageClasses:\n  - {{name: fast, tier: dram, capacity_gb: 8, {rest}}}\n"


REFUSED = {
    "no-dram": (
        HEAD + "storageClasses:\n  - {name: disk, tier: nvme, capacity_gb: 9, location: /kv}\n",
        "m.yaml:3: storageClasses: one class must be of tier dram: blocks pass through it",
    ),
    "two-dram": (
        CLASSES + "  - {name: more, tier: dram, capacity_gb: 1}\n",
        "m.yaml:5: storageClasses[1].tier: storageClasses[0] is of tier dram; there is one at most",
    ),
    "two-nvme": (
        nvme("") + "  - {name: more, tier: nvme, capacity_gb: 1, location: /kv2}\n",
        "m.yaml:6: storageClasses[2].tier: storageClasses[1] is of tier nvme; there is one at most",
    ),
    "a-name-twice": (
        nvme("").replace("disk", "fast"),
        "m.yaml:5: storageClasses[1].name: is that of storageClasses[0], too",
    ),
    "a-place-twice": (
        bucket("s3://b/p") + "  - {name: more, tier: object, capacity_gb: 1, location: s3://b/p/}\n",
        "m.yaml:6: storageClasses[2].location: is that of storageClasses[1], too",
    ),
    "nvme-nowhere": (
        nvme("").replace(", location: /kv", ""),
        "m.yaml:5: storageClasses[1]: an nvme class needs a location: a directory of its own, such as "
        "/var/lib/llmserve/kv",
    ),
    "nvme-at-a-url": (
        nvme("").replace("/kv", "s3://kv"),
        "m.yaml:5: storageClasses[1].location: the location of an nvme class is a directory, as an absolute "
        "path",
    ),
    "object-nowhere": (
        bucket("x").replace(", location: x", ""),
        "m.yaml:5: storageClasses[1]: an object class needs a location: a URL such as s3://BUCKET/PREFIX",
    ),
    "object-in-a-directory": (
        bucket("/kv"),
        "m.yaml:5: storageClasses[1].location: the location of an object class is a URL of s3://, gs://, "
        "az://, file:///",
    ),
    "region-of-a-directory": (
        bucket("file:///kv, region: here"),
        "m.yaml:5: storageClasses[1].region: is of s3:// locations",
    ),
    "endpoint-of-a-disk": (
        nvme(", endpoint: http://a"),
        "m.yaml:5: storageClasses[1].endpoint: is of object classes",
    ),
    "compressed-dram": (
        dram("format: {quantize: int8, compress: zstd}"),
        "m.yaml:4: storageClasses[0].format: workers copy dram themselves, and only "
        "quantize: compress and encrypt in a class below",
    ),
    "encrypted-dram": (
        dram("format: {encrypt: [{id: a, env: A}]}"),
        "m.yaml:4: storageClasses[0].format: workers copy dram themselves, and only "
        "quantize: compress and encrypt in a class below",
    ),
    "dram-somewhere": (
        dram("location: /dev/shm"),
        "m.yaml:4: storageClasses[0].location: a dram class is in memory",
    ),
    "dram-written-through": (
        dram("write: through"),
        "m.yaml:4: storageClasses[0].write: every block is written to dram first",
    ),
    "a-key-from-nowhere": (
        nvme(", format: {encrypt: [{id: a}]}"),
        "m.yaml:5: storageClasses[1].format.encrypt[0]: has no key; set env or file",
    ),
    "a-key-from-two-places": (
        nvme(", format: {encrypt: [{id: a, env: A, file: /a}]}"),
        "m.yaml:5: storageClasses[1].format.encrypt[0]: has both env and file; keep one",
    ),
    "a-key-id-twice": (
        nvme(", format: {encrypt: [{id: a, env: A}, {id: a, env: B}]}"),
        "m.yaml:5: storageClasses[1].format.encrypt[1].id: is the id of encrypt[0], too",
    ),
    "a-key-in-the-manifest": (
        nvme(", format: {encrypt: [{id: a, key: 0123}]}"),
        "m.yaml:5: storageClasses[1].format.encrypt[0].key: unknown key",
    ),
    "hot-nowhere": (
        HEAD + "kv_cache: {hot_keep_secs: 1}\n",
        "m.yaml:3: kv_cache.hot_keep_secs: there are no storageClasses that could keep blocks",
    ),
    "hotset-nowhere": (
        HEAD + "kv_cache: {tenant_hotset_gb: 1}\n",
        "m.yaml:3: kv_cache.tenant_hotset_gb: there are no storageClasses that could keep blocks",
    ),
    "quota-of-nothing": (
        HEAD + "security: {api_keys: [{tenant: a, key: x, kv_quota_gb: 1}]}\n",
        "m.yaml:3: security.api_keys[0].kv_quota_gb: there are no storageClasses that could keep blocks",
    ),
    "two-quotas": (
        CLASSES + "security: {api_keys: [{tenant: a, key: x, kv_quota_gb: 1}, "
        "{tenant: a, key: y, kv_quota_gb: 2}]}\n",
        "m.yaml:5: security.api_keys[1].kv_quota_gb: tenant 'a' has 1 at security.api_keys[0]; say it once",
    ),
}


@pytest.mark.parametrize(("text", "expected"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_is_refused_with_its_place(text: str, expected: str) -> None:
    (found,) = refused(text)
    assert found.startswith(expected)
