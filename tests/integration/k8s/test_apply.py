"""`llmserve up | status | down --mode k8s` against an API server: what is changed, shown, refused, told."""

import json
import re

import pytest

from llmserve.k8s.api import KubeApi
from llmserve.k8s.render import Object
from tests.integration.k8s.conftest import Cli
from tests.support.kube_server import KubeServer, write_kubeconfig


def test_without_apply_nothing_is_changed(cli: Cli, server: KubeServer) -> None:
    server.store.add_namespace("prod")
    said = cli("up")
    assert said.code == 0
    assert "Deployment demo-decode: create" in said.out
    assert "Nothing was changed" in said.out
    assert server.requests
    assert server.writes == []
    assert server.store.objects == {}


def test_a_namespace_that_is_not_there(cli: Cli, server: KubeServer) -> None:
    assert "Namespace prod is not there yet" in cli("up").out
    assert server.requests == []
    assert "Namespace prod created" in cli("up", "--apply").out
    assert "prod" in server.store.namespaces


def test_up_makes_everything_and_waits_for_the_pods(cli: Cli, server: KubeServer) -> None:
    said = cli("up", "--apply")
    assert said.code == 0, said.err
    assert "demo-decode: 1/2 ready" in said.out  # progress, not only the end
    assert "demo-decode: 2/2 ready" in said.out
    assert "port-forward service/demo-apiserver 8000:8000" in said.out
    kinds = [kind for method, kind, _ in server.writes if method == "PATCH"]
    assert kinds.count("Deployment") == 4
    assert kinds.index("ConfigMap") < kinds.index("StatefulSet")


def test_again_without_a_change(cli: Cli, server: KubeServer) -> None:
    cli("up", "--apply")
    before = len(server.writes)
    said = cli("up", "--apply")
    assert said.code == 0
    assert "0 to create, 0 to update, 22 to keep, 0 to delete" in said.out
    assert len(server.writes) == before


def test_the_cluster_has_a_secret_that_stays_and_is_not_shown(cli: Cli, server: KubeServer) -> None:
    said = cli("up", "--apply", "--verbose")
    made = server.store.get("Secret", "demo-secret")["stringData"]["secret"]
    assert len(made) == 64
    assert "Secret demo-secret created" in said.out
    cli.manifest(length=1024)
    again = cli("up", "--apply", "--verbose")
    assert server.store.get("Secret", "demo-secret")["stringData"]["secret"] == made
    assert made not in said.out + again.out
    (pod,) = server.store.get("Deployment", "demo-router")["spec"]["template"]["spec"]["containers"]
    variables = {one["name"]: one.get("value") for one in pod["env"]}
    mounts = {one["name"]: one["mountPath"] for one in pod["volumeMounts"]}
    assert variables["LLMSERVE_CLUSTER_SECRET_FILE"] == f"{mounts['secret']}/secret"


def test_secrets_with_certificates_that_are_missing_are_named(cli: Cli, server: KubeServer) -> None:
    cli.manifest(more="security: {mtls: {}}\n")
    said = cli("up", "--apply")
    assert said.code == 0
    assert "not there: demo-kvmanager-tls, demo-router-tls, demo-worker-tls, demo-apiserver-tls" in said.err
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "demo-router-tls"}}
    server.store.objects["Secret", "demo-router-tls"] = secret
    assert "not there: demo-kvmanager-tls, demo-worker-tls, demo-apiserver-tls" in cli("up").err
    assert "KV between pods goes over tcp with TLS (security.mtls)." in cli("apply").out


def test_a_change_is_shown_and_rolls_every_role(cli: Cli, server: KubeServer) -> None:
    cli("up", "--apply")
    cli.manifest(length=1024)
    shown = cli("up").out
    assert re.search(r"^- +max_model_len: 512$", shown, re.MULTILINE)
    assert re.search(r"^\+ +max_model_len: 1024$", shown, re.MULTILINE)
    before = len(server.writes)
    said = cli("up", "--apply")
    assert said.code == 0
    assert "demo-decode: 1/2 ready, 1 updated" in said.out
    changed = {name for _, kind, name in server.writes[before:] if kind in ("Deployment", "StatefulSet")}
    assert changed == {"demo-router", "demo-kvmanager", "demo-prefill", "demo-decode", "demo-apiserver"}
    assert server.store.get("Deployment", "demo-decode")["metadata"]["generation"] == 2


def test_more_pods_of_a_role_touch_no_other(cli: Cli, server: KubeServer) -> None:
    cli("up", "--apply")
    before = len(server.writes)
    cli.manifest(decode=3)
    assert "demo-decode: 3/3 ready" in cli("up", "--apply").out
    assert [name for *_, name in server.writes[before:]] == ["demo-decode"]


def test_what_is_not_wanted_any_more_goes(cli: Cli, server: KubeServer) -> None:
    cli("up", "--apply")
    cli.manifest(most="{apiserver: null}")
    assert "HorizontalPodAutoscaler demo-apiserver: delete" in cli("up").out
    assert "HorizontalPodAutoscaler demo-apiserver deleted" in cli("up", "--apply").out
    assert server.store.list("HorizontalPodAutoscaler", "") == []


def test_a_refusal_stops_it_before_anything_is_done(cli: Cli, server: KubeServer) -> None:
    server.store.add_namespace("prod")
    server.store.denied["Deployment", "demo-decode"] = "images must be signed"
    server.store.denied["Service", "demo-router"] = "no more services"
    said = cli("up", "--apply")
    assert said.code == 1
    assert "nothing was applied" in said.err
    for words in ("images must be signed", "no more services"):  # all of them at once
        assert words in said.err
    assert server.writes == []


def test_a_refusal_on_the_way_is_reported_with_what_was_done(cli: Cli, server: KubeServer) -> None:
    """What a dry run does not show: a quota that is used up meanwhile."""
    server.store.deny_dry_runs = False
    server.store.denied["Deployment", "demo-prefill"] = "exceeded quota: gpus"
    said = cli("up", "--apply")
    assert said.code == 1
    reason, done, left = said.err.strip().splitlines()
    assert "Deployment demo-prefill: " in reason
    assert "exceeded quota: gpus" in reason
    assert done.startswith("applied before that: Secret demo-secret, ServiceAccount demo,")
    assert "Deployment demo-router" in done
    assert left.startswith("not tried: Deployment demo-decode,")
    del server.store.denied["Deployment", "demo-prefill"]
    assert cli("up", "--apply").code == 0  # and it goes on from there


def test_a_refusal_of_the_last_look_does_not_hide_what_was_done(
    cli: Cli, server: KubeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After deletions it looks once more, for what a modelmanager made meanwhile."""
    cli("up", "--apply")
    cli.manifest(most="{apiserver: null}")
    delete = KubeApi.delete

    def delete_and_deny(api: KubeApi, one: Object) -> None:
        delete(api, one)
        server.store.denied["Deployment", "demo-decode"] = "images must be signed"

    monkeypatch.setattr(KubeApi, "delete", delete_and_deny)
    said = cli("up", "--apply")
    assert said.code == 1
    assert "HorizontalPodAutoscaler demo-apiserver deleted" in said.out
    assert "all changes above were made; only what a modelmanager made meanwhile may be left" in said.err
    assert "images must be signed" in said.err
    assert "nothing was applied" not in said.err


def test_a_field_that_cannot_change_is_refused_in_the_server_s_words(cli: Cli, server: KubeServer) -> None:
    cli("up", "--apply")
    server.store.objects["StatefulSet", "demo-kvmanager"]["spec"]["podManagementPolicy"] = "OrderedReady"
    said = cli("up", "--apply")
    assert said.code == 1
    assert "spec.podManagementPolicy: field is immutable" in said.err


def test_what_others_have_set_is_theirs_until_forced(cli: Cli, server: KubeServer) -> None:
    cli("up", "--apply")
    server.store.set_field("Deployment", "demo-decode", "kubectl-scale", "replicas", 7)
    said = cli("up", "--apply")
    assert said.code == 1
    assert 'Apply failed with 1 conflict: conflict with "kubectl-scale": .spec.replicas' in said.err
    assert cli("up", "--apply", "--force-conflicts").code == 0
    assert server.store.get("Deployment", "demo-decode")["spec"]["replicas"] == 2


def test_pods_that_do_not_start_are_told_with_the_reason(cli: Cli, server: KubeServer) -> None:
    cli.manifest(timeout=3.0)
    server.store.broken["demo-decode"] = ("ImagePullBackOff", "no such image llmserve:1")
    said = cli("up", "--apply")
    assert said.code == 1
    assert "demo-decode: 0/2 ready" in said.err
    assert "demo-decode-0: ImagePullBackOff: no such image llmserve:1" in said.err
    assert "demo-prefill" not in said.err
    assert cli("status").code == 1


def test_status(cli: Cli) -> None:
    assert cli("status").code == 1  # nothing is there
    cli("up", "--apply")
    said = cli("status")
    assert said.code == 0
    assert "demo-decode" in said.out
    assert "2/2" in said.out
    told = json.loads(cli("status", "--json").out)
    assert told["healthy"] is True
    roles = {one["role"]: one["ready"] for one in told["workloads"]}
    assert roles == {"kvmanager": 1, "router": 1, "prefill": 1, "decode": 2, "apiserver": 1}


def test_status_is_watched_through_a_server_that_is_away(
    cli: Cli, server: KubeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli("up", "--apply")
    silences = iter((True, False))

    def pause(seconds: float) -> None:
        """Then Ctrl-C."""
        server.silent = next(silences, False)
        if next(ends, True):
            raise KeyboardInterrupt

    ends = iter((False, False))
    monkeypatch.setattr("llmserve.cli.screen.time.sleep", pause)
    said = cli("status", "--watch", "--json")
    assert said.code == 0
    first, away, back = map(json.loads, said.out.splitlines())
    assert (first["healthy"], away["healthy"], back["healthy"]) == (True, False, True)
    assert "does not answer" in away["problems"][0]


def test_down_takes_all_of_it_and_nothing_else(cli: Cli, server: KubeServer) -> None:
    cli("up", "--apply")
    assert ("Secret", "demo-secret") in server.store.objects
    for kind in ("ConfigMap", "Secret"):
        other = {"apiVersion": "v1", "kind": kind, "metadata": {"name": "other"}, "data": {"a": "YQ=="}}
        server.store.apply("prod", other, "kubectl", force=False, dry_run=False)
    said = cli("down")
    assert said.code == 0, said.err
    assert "pods finish what they do" in said.out
    assert list(server.store.objects) == [("ConfigMap", "other"), ("Secret", "other")]
    assert "The namespace, volumes and Secrets that you made are left as they are." in said.out
    assert cli("down").code == 1


def test_a_down_that_is_refused_says_what_is_left(cli: Cli, server: KubeServer) -> None:
    cli("up", "--apply")
    server.store.denied["delete", "demo-router"] = 'deployments "demo-router" is forbidden'
    said = cli("down")
    assert said.code == 1
    reason, done, left = said.err.strip().splitlines()
    assert 'deployments "demo-router" is forbidden' in reason
    assert "HorizontalPodAutoscaler demo-apiserver" in done
    assert "ConfigMap demo-manifest" in left


def test_a_pod_monitor_without_its_operator(cli: Cli, server: KubeServer) -> None:
    text = cli.path.read_text().replace("k8s: {", "k8s: {pod_monitor: true, ")
    cli.path.write_text(text)
    said = cli("up", "--apply")
    assert said.code == 1
    assert "PodMonitor demo: the server could not find the requested resource" in said.err
    server.store.crds.add("PodMonitor")
    assert cli("up", "--apply").code == 0
    assert ("PATCH", "PodMonitor", "demo") in server.writes


def test_alert_rules_come_and_go_with_the_manifest(cli: Cli, server: KubeServer) -> None:
    server.store.crds.add("PrometheusRule")
    plain = cli.path.read_text()
    cli.path.write_text(plain.replace("k8s: {", "k8s: {prometheus_rules: true, "))
    assert cli("up", "--apply").code == 0
    cli.path.write_text(plain)
    assert cli("up", "--apply").code == 0
    writes = [(method, name) for method, kind, name in server.writes if kind == "PrometheusRule"]
    assert writes == [("PATCH", "demo"), ("DELETE", "demo")]


def test_a_server_that_does_not_answer_or_does_not_know_us(cli: Cli, server: KubeServer) -> None:
    server.kubeconfig.write_text(server.kubeconfig.read_text().replace("secret-token", "wrong"))
    said = cli("up", "--apply")
    assert (said.code, said.err.strip()) == (1, "Unauthorized")
    write_kubeconfig(server.kubeconfig, "http://127.0.0.1:9")
    said = cli("up")
    assert said.code == 1
    assert "the Kubernetes API server at http://127.0.0.1:9 does not answer" in said.err


@pytest.mark.parametrize("flag", ["--apply", "--image=i", "--namespace=n"])
def test_flags_of_kubernetes_on_this_machine(cli: Cli, flag: str) -> None:
    said = cli("up", "--mode", "local", flag)
    assert said.code == 2
    assert "needs --mode k8s" in said.err


def test_out_asks_no_server(cli: Cli, server: KubeServer) -> None:
    folder = cli.path.parent / "out"
    assert cli("up", "--out", str(folder)).code == 0
    assert (folder / "kustomization.yaml").is_file()
    assert server.requests == []


def test_apply_checks_without_a_server(cli: Cli, server: KubeServer) -> None:
    said = cli("apply")
    assert said.code == 0
    assert "StatefulSet demo-kvmanager" in said.out
    assert server.requests == []
