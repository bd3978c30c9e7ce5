"""cluster/kuberay: KubeRay knows each field; pods have no rights; who may connect is named."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from t2i_ray.config import load_sweep

REPOSITORY = Path(__file__).resolve().parent.parent
KUBERNETES = sorted((REPOSITORY / "cluster" / "kuberay").glob("*.yaml"))
FIELDS = yaml.safe_load((Path(__file__).parent / "kuberay_fields.yaml").read_text())
PLAIN: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
}


def pinned(package: str) -> str:
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    (version,) = (line.partition("==")[2] for line in lines if line.startswith(f"{package}=="))
    return version


def unlike(kind: str, value: Any, where: str) -> Iterator[str]:
    """Where a value is not of this type of kuberay_fields.yaml."""
    if kind in FIELDS:
        fields = {name.rstrip("!"): of for name, of in FIELDS[kind].items()}
        for name in sorted(value.keys() - fields.keys()):
            yield f"{where}.{name}: not a field of {kind}"
        for name in (name[:-1] for name in FIELDS[kind] if name.endswith("!")):
            if name not in value:
                yield f"{where}.{name}: missing"
        for name in value.keys() & fields.keys():
            yield from unlike(fields[name], value[name], f"{where}.{name}")
    elif kind[0] in "[{":
        items = value.items() if kind[0] == "{" else enumerate(value)
        for key, item in items:
            yield from unlike(kind[1:-1], item, f"{where}.{key}")
    elif kind in PLAIN:
        if not isinstance(value, PLAIN[kind]) or (kind != "boolean" and isinstance(value, bool)):
            yield f"{where}: {value!r} is no {kind}"
    elif kind[0].islower() and value not in kind.split("|"):
        yield f"{where}: {value!r} is none of {kind}"


def documents() -> Iterator[tuple[str, dict[str, Any]]]:
    for path in KUBERNETES:
        for document in yaml.safe_load_all(path.read_text()):
            yield f"{path.name} {document['kind']}", document


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every pod template."""

    def below(where: str, value: Any) -> Iterator[tuple[str, dict[str, Any]]]:
        if isinstance(value, dict):
            if "containers" in value:
                yield where, value
            for key, item in value.items():
                yield from below(f"{where}.{key}", item)
        elif isinstance(value, list):
            for number, item in enumerate(value):
                yield from below(f"{where}.{number}", item)

    for where, document in documents():
        yield from below(where, document)


def test_kuberay_knows_every_field() -> None:
    found = {document["kind"]: document for _, document in documents()}
    for kind in ("RayCluster", "RayJob"):
        assert list(unlike(kind, found[kind], kind)) == []
    # That it would say so:
    broken = found["RayCluster"] | {"spec": found["RayCluster"]["spec"] | {"auth": {}}}
    assert list(unlike("RayCluster", broken, "x")) == ["x.spec.auth: not a field of RayClusterSpec"]
    broken["spec"] = broken["spec"] | {"auth": None, "authOptions": {"mode": "off"}}
    assert "x.spec.authOptions.mode: 'off' is none of disabled|token" in list(
        unlike("RayCluster", broken, "x")
    )


def test_kuberay_has_token_redis_and_autoscaler() -> None:
    (cluster,) = (d["spec"] for _, d in documents() if d["kind"] == "RayCluster")
    assert cluster["rayVersion"] == pinned("ray")
    assert cluster["authOptions"] == {"mode": "token", "secretName": "t2i-ray-token"}
    services = [d["metadata"]["name"] for _, d in documents() if d["kind"] == "Service"]
    storage = cluster["gcsFaultToleranceOptions"]
    assert storage["redisAddress"].partition(":")[0] in services
    assert "secretKeyRef" in storage["redisPassword"]["valueFrom"]
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["autoscalerOptions"]["version"] == "v2"
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    pod = cluster["headGroupSpec"]["template"]["spec"]
    (container,) = pod["containers"]
    # KubeRay shares the logs with its autoscaler by a volume of this name (RayLogVolumeName).
    assert {"name": "ray-logs", "mountPath": "/tmp/ray"} in container["volumeMounts"]
    assert "ray-logs" in {volume["name"] for volume in pod["volumes"]}
    settings = {variable["name"]: variable.get("value") for variable in container["env"]}
    assert settings["RAY_health_check_period_ms"] == "1000"
    assert settings["RAY_health_check_failure_threshold"] == "5"
    spot, other = cluster["workerGroupSpecs"]
    assert spot["priority"] > other["priority"]
    assert {spot["minReplicas"], other["minReplicas"]} == {0}


def test_the_rayjob_is_a_sweep_that_asks_for_what_the_workers_have() -> None:
    """Without the GPUs it would train on the CPUs of machines that are paid for theirs."""
    found = {document["kind"]: document.get("spec", {}) for _, document in documents()}
    (submitter,) = found["RayJob"]["submitterPodTemplate"]["spec"]["containers"]
    assert {"name": "RAY_AUTH_MODE", "value": "token"} in submitter["env"]
    program, command, file, *overrides = shlex.split(found["RayJob"]["entrypoint"])
    assert (program, command) == ("t2i-ray", "tune")
    path = REPOSITORY / Path(file).relative_to("/opt/t2i_ray")
    assert load_sweep(str(path), overrides).run.cluster.gpu
    for group in found["RayCluster"]["workerGroupSpecs"]:
        (container,) = group["template"]["spec"]["containers"]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"


@pytest.mark.parametrize(("where", "pod"), list(pods()), ids=[where for where, _ in pods()])
def test_pods_have_no_rights_and_bounded_resources(where: str, pod: dict[str, Any]) -> None:
    context = pod["securityContext"]
    assert context["runAsNonRoot"] is True
    assert context["runAsUser"] > 0
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in pod["containers"]:
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert container["resources"]["requests"]
        assert {"cpu", "memory"} <= container["resources"]["limits"].keys()
        for variable in container.get("env", []):
            secret = re.search("PASSWORD|TOKEN|SECRET|KEY", variable["name"])
            assert not (secret and "value" in variable), variable["name"]
        settings = {v["name"]: v.get("value") for v in container.get("env", [])}
        if drain := settings.get("RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"):
            # Ray drains the node on SIGTERM; SIGKILL must come later.
            assert int(drain) + 10 < pod["terminationGracePeriodSeconds"]


def test_network_policies_name_who_may_come() -> None:
    policies = [d["spec"] for _, d in documents() if d["kind"] == "NetworkPolicy"]
    assert {tuple(p["podSelector"]["matchLabels"]) for p in policies} == {
        ("ray.io/cluster",),
        ("app",),
    }
    for policy in policies:
        assert policy["policyTypes"] == ["Ingress"]
        for rule in policy["ingress"]:
            assert rule["from"]
            for source in rule["from"]:
                assert source["podSelector"]["matchLabels"]
                if "namespaceSelector" in source:  # the operator, Prometheus
                    assert [port["port"] for port in rule["ports"]] in ([8265], [8080])


def test_role_of_the_bucket_trusts_the_pods_accounts() -> None:
    readme = (REPOSITORY / "cluster/README.md").read_text()
    for _, document in documents():
        if document["kind"] == "ServiceAccount":
            about = document["metadata"]
            role = about["annotations"]["eks.amazonaws.com/role-arn"].rpartition("/")[2]
            assert f"aws iam create-role --role-name {role} " in readme
            assert f'"system:serviceaccount:t2i-ray:{about["name"]}"' in readme
