"""Adapters in a bucket of a real S3 server, which may fail."""

import uuid
from collections.abc import Callable
from pathlib import Path

import obstore
import pytest

from llmserve.buckets.connect import BucketAddress, connect
from llmserve.config.adapter_source import AdapterSource, parse_adapter_source
from llmserve.config.schema import Lora, Manifest, StorageClass
from llmserve.core.adapters import LoraShape
from llmserve.core.errors import InvalidRequest, LLMServeError, ModelNotFound, Unavailable
from llmserve.models.adapters import AdapterCache, open_adapter_cache
from llmserve.models.adapters.cache import DISK_VARIABLE, DRAM_VARIABLE
from tests.integration.models.fetching import MANIFEST
from tests.support.adapters import SPOILERS, WEIGHTS, random_adapter, tiny_base
from tests.support.faulty_s3 import Fault, FaultyS3, Kind
from tests.support.seaweed import BUCKET, credentials

AWAY = {
    "refuses": Fault(Kind.STATUS, status=503, code="ServiceUnavailable"),
    "hangs-up": Fault(Kind.DROP),
    "breaks-off": Fault(Kind.CUT, method="GET"),
}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(DISK_VARIABLE, str(tmp_path / "cache" / "adapters"))
    monkeypatch.setenv(DRAM_VARIABLE, str(tmp_path / "memory"))
    for name, value in credentials().items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return random_adapter(tmp_path / "adapter", tiny_base(tmp_path / "base"), seed=1)


@pytest.fixture
def upload(s3_proxy: FaultyS3) -> Callable[[Path], AdapterSource]:
    def put(folder: Path) -> AdapterSource:
        prefix = f"{BUCKET}/adapters/{uuid.uuid4().hex}"
        store = connect(BucketAddress(f"s3://{prefix}", s3_proxy.endpoint))
        for file in folder.iterdir():
            obstore.put(store, file.name, file.read_bytes())
        return parse_adapter_source(f"s3://{prefix}")

    return put


@pytest.fixture
def cache(s3_proxy: FaultyS3) -> AdapterCache:
    lora = Lora(endpoint=s3_proxy.endpoint, allowed_sources=(f"s3://{BUCKET}/adapters",))
    manifest = MANIFEST.model_copy(update={"lora": lora})
    return open_adapter_cache(manifest, LoraShape(4, 16), None)


Upload = Callable[[Path], AdapterSource]


def test_an_adapter_comes_from_a_bucket(upload: Upload, adapter: Path, cache: AdapterCache) -> None:
    found = cache.fetch(upload(adapter))
    assert (found.path / WEIGHTS).read_bytes() == (adapter / WEIGHTS).read_bytes()


def test_the_store_of_kv_says_where_adapters_are(upload: Upload, adapter: Path, s3_proxy: FaultyS3) -> None:
    bucket = StorageClass(
        name="b", tier="object", capacity_gb=1, location="s3://kv/x", endpoint=s3_proxy.endpoint
    )
    manifest: Manifest = MANIFEST.model_copy(update={"storageClasses": (bucket,)})
    opened = open_adapter_cache(manifest, LoraShape(4, 16), None)
    assert opened.fetch(upload(adapter)).rank == 8


@pytest.mark.parametrize("fault", AWAY.values(), ids=AWAY)
def test_a_bucket_that_is_away_is_another_try_away(
    upload: Upload, adapter: Path, cache: AdapterCache, s3_proxy: FaultyS3, tmp_path: Path, fault: Fault
) -> None:
    source = upload(adapter)
    s3_proxy.fault = fault
    with pytest.raises(Unavailable, match=f"adapter '{source}'"):
        cache.fetch(source)
    s3_proxy.fault = None
    assert [path for path in (tmp_path / "cache" / "adapters").iterdir() if path.is_dir()] == []
    assert cache.fetch(source).rank == 8


def test_a_bit_that_changed_on_the_way_makes_another_adapter(
    upload: Upload, adapter: Path, cache: AdapterCache, s3_proxy: FaultyS3
) -> None:
    """Nobody knows the right digest at the first fetch; whoever expects one does not get this."""
    source = upload(adapter)
    digest = cache.fetch(source).digest
    cache.remove(digest)
    s3_proxy.fault = Fault(Kind.FLIP, method="GET")
    with pytest.raises(LLMServeError):
        cache.fetch(source, digest)
    assert cache.find(digest) is None


@pytest.mark.parametrize(
    ("spoiler", "kind", "said"),
    [
        ("pickle", InvalidRequest, "adapter_model.bin is a pickle"),
        ("no config", ModelNotFound, "there is no adapter_config.json"),
        ("truncated", InvalidRequest, "was cut off"),
    ],
)
def test_what_is_wrong_in_a_bucket_is_said(
    upload: Upload, adapter: Path, cache: AdapterCache, spoiler: str, kind: type[LLMServeError], said: str
) -> None:
    SPOILERS[spoiler](adapter)
    with pytest.raises(kind, match=said):
        cache.fetch(upload(adapter))


def test_wrong_credentials_are_said_without_showing_them(
    upload: Upload, adapter: Path, cache: AdapterCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = upload(adapter)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "quite-wrong")
    with pytest.raises(ModelNotFound, match="denied") as caught:
        cache.fetch(source)
    assert "quite-wrong" not in caught.value.message
