"""Sources of adapters: which texts are right, and what is below what is allowed."""

from pathlib import Path

import pytest

from llmserve.config.adapter_source import (
    AdapterSource,
    AdapterSourceKind,
    AllowedSources,
    is_below,
    parse_adapter_root,
    parse_adapter_source,
)
from llmserve.core.errors import InvalidRequest


@pytest.mark.parametrize(
    ("text", "kind", "place", "revision"),
    [
        ("dir:/adapters/sql", AdapterSourceKind.DIRECTORY, "/adapters/sql", ""),
        ("dir:/adapters/a/../sql/", AdapterSourceKind.DIRECTORY, "/adapters/sql", ""),
        ("hub:org/sql-lora", AdapterSourceKind.HUB, "org/sql-lora", ""),
        ("hub:org/sql-lora@v1.0", AdapterSourceKind.HUB, "org/sql-lora", "v1.0"),
        ("s3://bucket/team/sql", AdapterSourceKind.S3, "bucket/team/sql", ""),
        ("s3://bucket", AdapterSourceKind.S3, "bucket", ""),
    ],
)
def test_a_source_is_parsed_and_its_text_means_the_same(
    text: str, kind: AdapterSourceKind, place: str, revision: str
) -> None:
    source = parse_adapter_source(text)
    assert source == AdapterSource(kind, place, revision)
    assert parse_adapter_source(str(source)) == source


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("/adapters/a/../sql/", "dir:/adapters/sql"),
        ("org/sql", "hub:org/sql"),
        ("org/sql@v1", "hub:org/sql@v1"),
    ],
)
def test_without_a_scheme_a_path_is_a_directory_and_other_ids_are_the_hub_s(text: str, source: str) -> None:
    assert str(parse_adapter_source(text)) == source


def test_the_revision_of_the_manifest_becomes_part_of_the_source() -> None:
    assert str(parse_adapter_source("hub:org/name", "main")) == "hub:org/name@main"
    assert parse_adapter_source("hub:org/name@v1", "v1").revision == "v1"


@pytest.mark.parametrize(
    ("text", "revision", "said"),
    [
        ("", None, "dir:/PATH, hub:ORG/NAME"),
        ("sql", None, "adapter source 'sql': an adapter comes from dir:/PATH, hub:ORG/NAME"),
        ("./sql", None, "dir:/PATH, hub:ORG/NAME"),
        ("a/b/c", None, "dir:/PATH, hub:ORG/NAME"),
        ("dir:adapters/sql", None, "dir:/PATH"),
        ("dir:/a\0b", None, "dir:/PATH"),
        ("hub:name", None, "hub:ORG/NAME"),
        ("hub:org/name@", None, "hub:ORG/NAME@REVISION"),
        ("hub:org/name@a b", None, "hub:ORG/NAME@REVISION"),
        ("hub:org/../name", None, "hub:ORG/NAME"),
        ("s3://bucket/../other", None, "s3://BUCKET/PREFIX"),
        ("s3://user:secret@bucket/a", None, "s3://BUCKET/PREFIX"),
        ("s3://bucket/a?versionId=1", None, "s3://BUCKET/PREFIX"),
        ("http://there/a", None, "dir:/PATH"),
        ("dir:/a", "v1", "only sources of the hub have a revision"),
        ("hub:org/name@v1", "v2", "names revision 'v1', and `revision` is 'v2'"),
    ],
)
def test_a_wrong_source_says_what_is_right(text: str, revision: str | None, said: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_adapter_source(text, revision)
    assert said in caught.value.message
    assert caught.value.field == "source"


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("hub:org", "org"),
        ("hub:org/name", "org/name"),
        ("dir:/", "/"),
        ("dir:/adapters/", "/adapters"),
        ("s3://bucket/", "bucket"),
    ],
)
def test_a_root_may_be_wider_than_a_source(text: str, place: str) -> None:
    assert parse_adapter_root(text).place == place


@pytest.mark.parametrize(
    "text", ["", "org", "hub:", "hub:/", "dir:", "dir:here", "s3:b", "s3://", "hub:a/b/c"]
)
def test_a_wrong_root_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        parse_adapter_root(text)
    with pytest.raises(InvalidRequest):
        parse_adapter_source(text)


@pytest.mark.parametrize(
    ("root", "inside", "outside"),
    [
        ("hub:org", "hub:org/name@v1", "hub:organisation/name"),
        ("hub:org/name", "hub:org/name", "hub:org/name-2"),
        ("s3://bucket", "s3://bucket/any/where", "s3://bucket-2/any"),
        ("s3://bucket/team", "s3://bucket/team", "s3://bucket/team-2/x"),
        ("dir:/adapters/", "dir:/adapters/x", "dir:/adapters-2/x"),
        ("dir:/adapters", "dir:/adapters/x/../y", "dir:/adapters/../etc"),
        ("dir:/", "dir:/adapters/x", "s3://bucket/x"),
    ],
)
def test_only_what_is_below_a_root_is_allowed(root: str, inside: str, outside: str) -> None:
    assert is_below(parse_adapter_source(inside), ["hub:other", root])
    assert not is_below(parse_adapter_source(outside), ["hub:other", root])
    assert not is_below(parse_adapter_source(inside), [])


def test_a_symbolic_link_leads_out_of_no_root(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    (outside / "x").mkdir(parents=True)
    root.mkdir()
    (root / "link").symlink_to(outside)
    assert not is_below(parse_adapter_source(f"dir:{root}/link/x"), [f"dir:{root}"])
    (tmp_path / "alias").symlink_to(root)
    (root / "own").mkdir()
    assert is_below(parse_adapter_source(f"dir:{root}/own"), [f"dir:{tmp_path}/alias"])


def test_files_of_a_directory_must_be_below_its_root_unless_it_was_declared(tmp_path: Path) -> None:
    real, alias = tmp_path / "real", tmp_path / "alias"
    real.mkdir()
    alias.symlink_to(real)
    allowed = AllowedSources(frozenset({f"dir:{alias}/own"}), (f"dir:{alias}", "dir:/other", "hub:org"))
    assert allowed.real_roots(parse_adapter_source(f"dir:{alias}/x")) == (str(real.resolve()),)
    assert allowed.real_roots(parse_adapter_source(f"dir:{alias}/own")) == ()
    assert allowed.real_roots(parse_adapter_source("hub:org/x")) == ()


def test_files_of_a_directory_below_no_root_of_this_host_must_be_in_it(tmp_path: Path) -> None:
    """It was declared later, or the router's host has other links."""
    later = tmp_path / "later"
    later.symlink_to(tmp_path / "real")
    allowed = AllowedSources(frozenset({"dir:/declared"}), ("dir:/root", "s3://bucket"))
    assert allowed.real_roots(parse_adapter_source(f"dir:{later}")) == (str(tmp_path.resolve() / "real"),)
