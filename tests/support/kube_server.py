"""An API server of Kubernetes as far as `--mode k8s` speaks to one, over real HTTP on loopback.

No real one can be had in the tests (decision 0016). This one is strict where it matters to us: bearer token,
paths, content types, Strict field validation, server-side apply with owners and conflicts, dry runs,
immutable fields, the namespace; its errors have the form and the words of the real one.
"""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import yaml

from tests.support.kube_store import Refusal, Store

TOKEN = "secret-token"
_OF_OPERATORS = ("PodMonitor", "PrometheusRule")
_KINDS = {
    "/api/v1": {
        "configmaps": "ConfigMap",
        "secrets": "Secret",
        "serviceaccounts": "ServiceAccount",
        "services": "Service",
        "pods": "Pod",
    },
    "/apis/apps/v1": {"deployments": "Deployment", "statefulsets": "StatefulSet"},
    "/apis/autoscaling/v2": {"horizontalpodautoscalers": "HorizontalPodAutoscaler"},
    "/apis/networking.k8s.io/v1": {"networkpolicies": "NetworkPolicy"},
    "/apis/policy/v1": {"poddisruptionbudgets": "PodDisruptionBudget"},
    "/apis/rbac.authorization.k8s.io/v1": {"roles": "Role", "rolebindings": "RoleBinding"},
    "/apis/monitoring.coreos.com/v1": {"podmonitors": "PodMonitor", "prometheusrules": "PrometheusRule"},
}


class KubeServer:
    """`requests` are those that changed, or would have changed, something: (method, kind, name, dry run).
    asked: the rights that all requests need, as (verb, resource). silent: it ends connections without an
    answer."""

    def __init__(self, store: Store, kubeconfig: Path) -> None:
        self.store = store
        self.kubeconfig = kubeconfig
        self.requests: list[tuple[str, str, str, bool]] = []
        self.asked: set[tuple[str, str]] = set()
        self.silent = False

    @property
    def writes(self) -> list[tuple[str, str, str]]:
        """What was asked in earnest."""
        return [(method, kind, name) for method, kind, name, dry_run in self.requests if not dry_run]


@contextmanager
def kube_server(folder: Path, version: str) -> Iterator[KubeServer]:
    server = KubeServer(Store(version), folder / "kubeconfig")
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # one segment for an answer: two would wait 40 ms for each other

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if server.silent:
                self.close_connection = True
                return
            with lock:
                try:
                    answer: dict[str, Any] | str
                    code, answer = 200, _Request(server, self, body).answer()
                except Refusal as refusal:
                    code, answer = refusal.code, _status(refusal)
                data = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_PATCH = do_DELETE = do_POST = _answer  # noqa: N815

        def log_message(self, *args: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    write_kubeconfig(server.kubeconfig, f"http://127.0.0.1:{http.server_address[1]}")
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


def write_kubeconfig(path: Path, url: str) -> None:
    path.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "test",
                "clusters": [{"name": "test", "cluster": {"server": url}}],
                "users": [{"name": "test", "user": {"token": TOKEN}}],
                "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            }
        )
    )


def _status(refusal: Refusal) -> dict[str, Any]:
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": refusal.message,
        "reason": refusal.reason,
        "code": refusal.code,
    }


class _Request:
    def __init__(self, server: KubeServer, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        self._server, self._store, self._handler = server, server.store, handler
        url = urlsplit(handler.path)
        self._path, self._query = unquote(url.path), dict(parse_qsl(url.query))
        self._body = body

    def answer(self) -> dict[str, Any] | str:
        if self._handler.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise Refusal(401, "Unauthorized", "Unauthorized")
        if self._path.startswith("/api/v1/namespaces") and self._path.count("/") <= 4:
            return self._namespace()
        api, _, rest = self._path.partition("/namespaces/")
        namespace, plural, name, part = (*rest.split("/"), "", "")[:4]
        kind = _KINDS.get(api, {}).get(plural)
        if kind is None or (kind in _OF_OPERATORS and kind not in self._store.crds):
            raise Refusal(404, "NotFound", "the server could not find the requested resource")
        if (kind, part) == ("Pod", "log"):
            return self._store.log(name, self._query)
        verbs = {"GET": ["get" if name else "list"], "DELETE": ["delete"], "PATCH": ["create", "patch"]}
        self._server.asked |= {(verb, plural) for verb in verbs.get(self._handler.command, ())}
        return self._of_kind(kind, api, namespace, name)

    def _namespace(self) -> dict[str, Any]:
        name = self._path.removeprefix("/api/v1/namespaces").strip("/")
        if self._handler.command == "POST":
            name = json.loads(self._body)["metadata"]["name"]
            self._server.requests.append(("POST", "Namespace", name, "dryRun" in self._query))
            self._store.add_namespace(name)
        elif name not in self._store.namespaces:
            raise Refusal(404, "NotFound", f'namespaces "{name}" not found')
        return {"kind": "Namespace", "metadata": {"name": name}}

    def _of_kind(self, kind: str, api: str, namespace: str, name: str) -> dict[str, Any]:
        match self._handler.command, bool(name):
            case "GET", True:
                return self._store.get(kind, name)
            case "GET", False:
                if kind == "Pod":  # the last of a look
                    self._store.step()
                items = self._store.list(kind, self._query.get("labelSelector", ""))
                # As the real one: items of a list do not say what they are.
                bare = [{k: v for k, v in one.items() if k not in ("kind", "apiVersion")} for one in items]
                return {"kind": f"{kind}List", "items": bare}
            case "DELETE", True:
                self._server.requests.append(("DELETE", kind, name, "dryRun" in self._query))
                self._store.delete(kind, name)
                return {"kind": "Status", "status": "Success"}
            case "PATCH", True:
                return self._apply(kind, api, namespace, name)
        raise Refusal(405, "MethodNotAllowed", "the server does not allow this method on the resource")

    def _apply(self, kind: str, api: str, namespace: str, name: str) -> dict[str, Any]:
        if self._handler.headers.get("Content-Type") != "application/apply-patch+yaml":
            raise Refusal(415, "UnsupportedMediaType", "the body of the request was in an unknown format")
        manager = self._query.get("fieldManager")
        if not manager:
            raise Refusal(400, "BadRequest", "PatchOptions.meta.k8s.io is invalid: fieldManager: Required")
        body = yaml.safe_load(self._body)
        version = api.removeprefix("/apis/").removeprefix("/api/")
        if (body["kind"], body["apiVersion"], body["metadata"]["name"]) != (kind, version, name):
            raise Refusal(400, "BadRequest", "the object in the body does not match the URL")
        dry_run = self._query.get("dryRun") == "All"
        self._server.requests.append(("PATCH", kind, name, dry_run))
        force = self._query.get("force") == "true"
        return self._store.apply(namespace, body, manager, force, dry_run)
