"""The manifests for Kubernetes: with an error in them a rollout would kill pods in the middle of their drain."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]  # ships no types
import pytest
import yaml

from streamer.cli.process import STOP_WITHIN
from streamer.settings import Settings, variable
from tests.support.commands import runs
from tests.support.paths import ROOT

FOLDER = ROOT / "ops" / "kubernetes"
OVERLAYS = sorted(path.parent for path in (FOLDER / "overlays").rglob("kustomization.yaml"))
DOCUMENTS = [
    (path.name, document)
    for folder in ("base", "migrate")
    for path in sorted((FOLDER / folder).glob("*.yaml"))
    if path.name != "kustomization.yaml"
    for document in yaml.safe_load_all(path.read_text())
]
KNOWN = {variable(name) for name in Settings.model_fields}
KUBECTL = shutil.which("kubectl")
OTHERS_KINDS = {"ServiceMonitor"}
"""Kinds that are not Kubernetes' own, whose schema is not available."""


def of_kind(kind: str) -> dict[str, Any]:
    """The one manifest of a kind."""
    (found,) = (document for _, document in DOCUMENTS if document["kind"] == kind)
    return dict(found)


def validate(document: dict[str, Any]) -> None:
    if document["kind"] not in OTHERS_KINDS:
        kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize(("name", "document"), DOCUMENTS, ids=[f"{n}:{d['kind']}" for n, d in DOCUMENTS])
def test_a_manifest_is_one(name: str, document: dict[str, Any]) -> None:
    """Kubernetes' own schema, strictly: it would drop an unknown member silently."""
    validate(document)


def pods() -> list[tuple[str, dict[str, Any]]]:
    """Name and pod specification of everything that runs pods."""
    found = []
    for _, document in DOCUMENTS:
        spec = document.get("spec", {})
        spec = spec.get("jobTemplate", {}).get("spec", spec)
        if "template" in spec:
            found.append((document["metadata"]["name"], spec["template"]["spec"]))
    return found


def test_the_server_does_not_have_the_owners_credentials() -> None:
    """A server that is broken into must not be able to drop tables."""
    secrets = {
        name: [source["secretRef"]["name"] for source in pod["containers"][0]["envFrom"] if "secretRef" in source]
        for name, pod in pods()
    }
    owner = ["streamer-owner"]
    assert secrets == {
        "streamer": ["streamer"],
        "streamer-backup": owner,
        "streamer-prune": owner,
        "streamer-migrate": owner,
    }


def test_the_autoscaler_owns_the_number_of_pods() -> None:
    """An apply that resets the number of pods in the evening peak sends thousands of clients away."""
    assert "replicas" not in of_kind("Deployment")["spec"]


def test_network_policies_limit_access_to_the_server() -> None:
    """Every pod of a release is in a network policy, and the Ingress speaks TLS for each of its hosts."""
    policies = [document for _, document in DOCUMENTS if document["kind"] == "NetworkPolicy"]
    named = {policy["spec"]["podSelector"]["matchLabels"]["app.kubernetes.io/name"] for policy in policies}
    assert named == {"streamer", "streamer-upkeep"}
    ingress = of_kind("Ingress")["spec"]
    assert [rule["host"] for rule in ingress["rules"]] == ingress["tls"][0]["hosts"]
    monitor = of_kind("ServiceMonitor")["spec"]
    service = of_kind("Service")
    assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert monitor["endpoints"][0]["port"] in {port["name"] for port in service["spec"]["ports"]}


@pytest.mark.parametrize("name", ["streamer-backup", "streamer-prune", "streamer-migrate"])
def test_jobs_run_commands_that_there_are(name: str) -> None:
    """A nightly backup with a misspelt option fails every night."""
    runs(" ".join(dict(pods())[name]["containers"][0]["args"]))


@pytest.mark.skipif(KUBECTL is None, reason="kubectl is not installed")
@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: str(path.relative_to(FOLDER)))
def test_an_overlay_is_built(overlay: Path) -> None:
    """With kustomize itself: valid manifests of one namespace, images by an immutable tag, a Job for each release."""
    assert KUBECTL is not None
    done = subprocess.run([KUBECTL, "kustomize", str(overlay)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    documents = list(yaml.safe_load_all(done.stdout))
    assert {document["kind"] for document in documents} & {"Job", "Deployment"}
    for document in documents:
        validate(document)
        assert document["metadata"]["namespace"].startswith("venta")
    images = re.findall(r"image: (\S+)", done.stdout)
    assert images
    for image in images:
        assert re.fullmatch(r"registry\.example\.com/venta-streamer(-operations)?:\d+\.\d+\.\d+", image), image
    for document in documents:
        if document["kind"] == "Job":
            assert document["metadata"]["name"].endswith("-" + images[0].rpartition(":")[2].replace(".", "-"))


def test_a_manifest_with_a_mistake_is_refused() -> None:
    """The check above must be able to fail."""
    document = of_kind("PodDisruptionBudget")
    document["spec"] = {**document["spec"], "maxUnavailible": 1}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)


def test_a_pod_has_the_time_to_drain() -> None:
    """Kubernetes kills what has not ended in time, with the pings that were not stored yet."""
    pod = of_kind("Deployment")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    configured = of_kind("ConfigMap")["data"]
    before = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    needed = before + float(configured["STREAMER_DRAIN_TIMEOUT"]) + STOP_WITHIN
    assert needed < pod["terminationGracePeriodSeconds"]


def test_what_the_manifests_set_and_ask_is_there() -> None:
    """The server ignores an unknown setting, and a probe of an unknown path fails forever."""
    configured = of_kind("ConfigMap")["data"]
    assert set(configured) <= KNOWN
    (container,) = of_kind("Deployment")["spec"]["template"]["spec"]["containers"]
    probes = {name: container[name]["httpGet"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert {name: probe["path"] for name, probe in probes.items()} == {
        "startupProbe": "/livez",
        "livenessProbe": "/livez",
        "readinessProbe": "/readyz",
    }
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert {probe["port"] for probe in probes.values()} <= set(ports)
    assert str(ports["http"]) == configured["STREAMER_PORT"]
    assert str(ports["admin"]) == configured["STREAMER_ADMIN_PORT"]
    labels = of_kind("Deployment")["spec"]["template"]["metadata"]["labels"]
    assert of_kind("Service")["spec"]["selector"].items() <= labels.items()
    assert (
        of_kind("HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]["name"]
        == of_kind("Deployment")["metadata"]["name"]
    )
