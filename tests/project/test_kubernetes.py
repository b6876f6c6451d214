"""The manifests for Kubernetes. What breaks if these fail: a rollout that kills pods amidst their drain."""

from __future__ import annotations

from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]  # ships no types
import pytest
import yaml

from streamer.cli.serve import STOP_WITHIN
from streamer.settings import Settings, variable
from tests.support.paths import ROOT

FOLDER = ROOT / "ops" / "kubernetes"
DOCUMENTS = [
    (path.name, document) for path in sorted(FOLDER.glob("*.yaml")) for document in yaml.safe_load_all(path.read_text())
]
KNOWN = {variable(name) for name in Settings.model_fields}


def of_kind(kind: str) -> dict[str, Any]:
    """The one manifest of a kind."""
    (found,) = (document for _, document in DOCUMENTS if document["kind"] == kind)
    return dict(found)


@pytest.mark.parametrize(("name", "document"), DOCUMENTS, ids=[f"{n}:{d['kind']}" for n, d in DOCUMENTS])
def test_a_manifest_is_one(name: str, document: dict[str, Any]) -> None:
    """By Kubernetes' own schema, strictly: a member that it does not know would be dropped without a word."""
    kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)


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
    """A setting that is none is ignored by the server, a probe of a path that is none fails for ever."""
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
    labels = of_kind("Deployment")["spec"]["template"]["metadata"]["labels"]
    assert of_kind("Service")["spec"]["selector"].items() <= labels.items()
    assert (
        of_kind("HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]["name"]
        == of_kind("Deployment")["metadata"]["name"]
    )
