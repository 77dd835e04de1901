"""The names of background flows."""

from llmserve.core.ids import TenantId, background_of, owner_of


def test_a_background_flow_is_named_after_its_owner() -> None:
    red = TenantId("red")
    assert background_of(red) == "red (batches)"
    assert owner_of(background_of(red)) == owner_of(red) == red
