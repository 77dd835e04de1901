"""What /openapi.json says of every route."""

from fastapi import FastAPI

from llmserve.apiserver.http.openapi import document_errors


def test_routes_have_their_scopes_and_the_statuses_of_errors() -> None:
    app = FastAPI()
    paths = ("/health", "/v1/models/{model_id:path}", "/admin/v1/kv", "/admin/v1/models/{name:path}")
    for path in paths:
        app.add_api_route(path, lambda: None)
    document_errors(app)
    described = {path: one["get"] for path, one in app.openapi()["paths"].items()}
    assert {path: one["x-llmserve-scopes"] for path, one in described.items()} == {
        "/health": [],
        "/v1/models/{model_id}": ["inference", "read"],
        "/admin/v1/kv": ["read"],
        "/admin/v1/models/{name}": ["admin"],
    }
    assert all({"401", "403"} <= set(one["responses"]) for one in described.values())
    assert app.openapi() is app.openapi()
