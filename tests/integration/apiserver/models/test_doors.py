"""Which model a request means, by its field `model` and its tenant."""

from dataclasses import dataclass, field

import pytest

from llmserve.apiserver.auth.caller import ALL_SCOPES, Caller
from llmserve.apiserver.http.scope import RequestScope, enter_scope
from llmserve.apiserver.models.doors import ModelDoors
from llmserve.core.errors import InvalidRequest, NotFound
from llmserve.core.ids import TenantId


class Adapters(dict[str, str]):
    """Digests by name."""

    def find(self, wanted: str) -> str | None:
        return wanted if wanted in (*self, *self.values()) else None


@dataclass
class Door:
    name: str
    adapters: Adapters = field(default_factory=Adapters)
    tenants: tuple[str, ...] = ()
    generates: bool = True
    response: str = ""
    paths: frozenset[str] = frozenset()

    def admits(self, tenant: TenantId) -> bool:
        return not self.tenants or tenant in self.tenants

    def makes_response(self, response_id: str) -> bool:
        return bool(self.response) and self.response == response_id


@pytest.fixture
def scope() -> RequestScope:
    scope = RequestScope(caller=Caller(TenantId("red")))
    enter_scope(scope)
    return scope


def doors(*made: Door) -> ModelDoors:
    result = ModelDoors()
    for door in made:
        result.add(door)  # type: ignore[arg-type]
    return result


@pytest.fixture
def several(scope: RequestScope) -> ModelDoors:
    return doors(
        Door("tiny", Adapters(sql="1")), Door("large", Adapters(poems="2")), Door("secret", tenants=("blue",))
    )


@pytest.mark.parametrize(
    ("name", "chosen"), [("tiny", "tiny"), ("large", "large"), ("sql", "tiny"), ("poems", "large")]
)
def test_a_model_is_named_by_itself_or_by_an_adapter_of_it(
    several: ModelDoors, name: str, chosen: str
) -> None:
    assert several.named(name).name == chosen


def test_versions_name_a_model_only_where_they_may(several: ModelDoors) -> None:
    assert several.named("2", by_version=True).name == "large"
    with pytest.raises(NotFound):
        several.named("2")


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("Larg", "large, tiny, sql, poems"),
        ("poem", "poems, tiny, large, sql"),
        ("gpt-7", "tiny, large, sql, poems"),
        ("secret", "tiny, large, sql, poems"),
    ],
)
def test_an_unknown_name_is_told_the_known_ones_those_like_it_first(
    several: ModelDoors, name: str, known: str
) -> None:
    with pytest.raises(NotFound) as refused:
        several.named(name)
    assert refused.value.message == f"The model `{name}` does not exist. There are: {known}."
    assert refused.value.field == "model"


def test_a_tenant_sees_what_it_may_use(several: ModelDoors, scope: RequestScope) -> None:
    scope.caller = Caller(TenantId("blue"))
    assert several.named("secret").name == "secret"
    assert [door.name for door in several.visible()] == ["tiny", "large", "secret"]
    scope.caller = Caller(TenantId("red"))
    assert [door.name for door in several.visible()] == ["tiny", "large"]
    scope.caller = Caller(TenantId("red"), models=frozenset({"large", "secret"}))
    assert [door.name for door in several.visible()] == ["large"]
    with pytest.raises(NotFound, match="There are: large"):
        several.named("tiny")


def test_an_admin_manages_also_what_its_tenant_may_not_use(several: ModelDoors, scope: RequestScope) -> None:
    scope.caller = Caller(TenantId("red"), ALL_SCOPES)
    assert [several.managed(name).name for name in ("secret", "tiny")] == ["secret", "tiny"]
    with pytest.raises(NotFound, match="There are: tiny, large, secret, sql, poems"):
        several.managed("gpt-7")
    with pytest.raises(InvalidRequest, match="model has to be set: there are tiny, large, secret, sql"):
        several.managed(None)
    assert doors(Door("secret", tenants=("blue",))).managed(None).name == "secret"
    with pytest.raises(NotFound):
        several.named("secret")


def test_what_is_about_no_model_is_for_the_first_that_generates(scope: RequestScope) -> None:
    pooling, tiny = Door("embedding", generates=False), Door("tiny", response="r1")
    mixed = doors(pooling, tiny, Door("large", response="r2"))
    assert mixed.first.name == mixed.first_that(generates=True).name == "tiny"
    assert mixed.first_that(generates=False).name == "embedding"
    assert [mixed.with_response(name).name for name in ("r1", "r2", "r3")] == ["tiny", "large", "tiny"]
    assert doors(pooling).first.name == doors(pooling).with_response("r1").name == "embedding"


@pytest.mark.parametrize("nothing", [None, ""])
def test_without_a_name_there_has_to_be_one_model(
    several: ModelDoors, scope: RequestScope, nothing: str | None
) -> None:
    with pytest.raises(InvalidRequest, match="model has to be set: there are tiny, large, sql") as refused:
        several.named(nothing)
    assert refused.value.field == "model"
    assert doors(Door("tiny")).named(nothing).name == "tiny"
    assert doors(Door("secret", tenants=("blue",)), Door("tiny")).named(nothing).name == "tiny"


def test_a_path_is_served_where_any_model_serves_it() -> None:
    made = doors(Door("tiny", paths=frozenset({"/chat"})))
    assert (made.serves("/chat"), made.serves("/embeddings")) == (True, False)
    made.add(Door("vectors", paths=frozenset({"/embeddings"})))  # type: ignore[arg-type]
    assert (made.serves("/chat"), made.serves("/embeddings")) == (True, True)


def test_long_lists_and_long_names_are_cut(scope: RequestScope) -> None:
    many = doors(*(Door(f"model-{number}") for number in range(12)))
    with pytest.raises(NotFound) as refused:
        many.named("x" * 5000)
    assert refused.value.message.startswith(f"The model `{'x' * 200}` does not exist. There are: model-0, ")
    assert refused.value.message.endswith("model-9 and 2 more.")


def test_a_name_is_that_of_one_model(several: ModelDoors) -> None:
    with pytest.raises(InvalidRequest, match="model tiny is loaded already"):
        several.add(Door("tiny"))  # type: ignore[arg-type]


async def test_the_only_model_stays(scope: RequestScope) -> None:
    with pytest.raises(InvalidRequest, match="model tiny is the only one"):
        await doors(Door("tiny")).drop("tiny", 0)
    with pytest.raises(NotFound, match="The model `large` does not exist"):
        await doors(Door("tiny")).drop("large", 0)
