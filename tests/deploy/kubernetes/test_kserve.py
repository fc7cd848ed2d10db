"""KServe's manifests: strictly valid, and the same server as in the chart."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.deploy.kubernetes.manifests import KSERVE, Manifest, containers, environment, render, validate

FILES = sorted(KSERVE.glob("*.yaml"))
SERVICES = [path for path in FILES if path.name.startswith("inferenceservice")]


def manifest(path: Path) -> Manifest:
    content: Manifest = yaml.safe_load(path.read_text())
    return content


def runtime() -> Manifest:
    return manifest(KSERVE / "servingruntime.yaml")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_objects_are_strictly_valid(path: Path) -> None:
    validate(manifest(path), "")


@pytest.mark.parametrize("path", SERVICES, ids=lambda path: path.stem)
def test_a_service_chooses_the_runtime_and_its_format(path: Path) -> None:
    model = manifest(path)["spec"]["predictor"]["model"]
    formats = [{name: item[name] for name in ("name", "version")} for item in runtime()["spec"]["supportedModelFormats"]]
    assert model["runtime"] == runtime()["metadata"]["name"] and model["modelFormat"] in formats


@pytest.mark.parametrize("path", SERVICES, ids=lambda path: path.stem)
def test_a_service_waits_until_the_server_has_drained(path: Path) -> None:
    (container,) = containers(runtime())
    predictor = manifest(path)["spec"]["predictor"]
    _, seconds = container["lifecycle"]["preStop"]["exec"]["command"]
    grace = environment(container)["WHISPER_GRACE_SECONDS"]
    assert grace is not None
    assert predictor["terminationGracePeriodSeconds"] == int(seconds) + int(grace) + 15
    assert predictor["enableServiceLinks"] is False


def test_the_runtime_is_the_container_of_the_chart() -> None:
    """What differs is that KServe has no named ports, and that a runtime has no security context for the pod."""
    (ours,), (chart,) = containers(runtime()), containers(render()["Deployment"])
    common = (
        "TS_INFERENCE_ADDRESS",
        "TS_MANAGEMENT_ADDRESS",
        "TS_METRICS_ADDRESS",
        "WHISPER_GATEWAY_ADDRESS",
        "WHISPER_GRACE_SECONDS",
        "WHISPER_ALLOW_ANONYMOUS",
    )
    for name in (*common, "WHISPER_STATE_DIR", "TS_MODEL_STORE"):
        assert environment(ours)[name] == environment(chart)[name]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert ours[probe] == chart[probe] | {"httpGet": chart[probe]["httpGet"] | {"port": 8000}}
    assert ours["lifecycle"] == chart["lifecycle"] and ours["image"] == chart["image"]
    assert chart["securityContext"].items() <= ours["securityContext"].items()
    assert (
        ours["volumeMounts"] == chart["volumeMounts"]
        and runtime()["spec"]["volumes"] == render()["Deployment"]["spec"]["template"]["spec"]["volumes"]
    )
