"""Kubernetes' objects: rendered by Helm or read from a file, and validated strictly."""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate  # type: ignore[import-untyped]  # it has no types
import pytest
import yaml

from tests.deploy.binaries import ROOT, STATE, helm

CHART = ROOT / "deploy" / "kubernetes" / "whisper"
KSERVE = ROOT / "deploy" / "kubernetes" / "kserve"
DEFINITIONS = STATE / "crds"
"""Custom resource definitions, as YAML files: of KEDA, KServe and the Prometheus operator."""
CUSTOM = ("keda.sh/", "serving.kserve.io/", "monitoring.coreos.com/")

Manifest = dict[str, Any]


def run_helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([helm(), *arguments], capture_output=True, text=True, timeout=120, check=False)


@functools.cache
def render(*arguments: str) -> dict[str, Manifest]:
    """The chart's objects by their kinds, for a release `whisper` in the namespace `speech`, with helm's arguments."""
    done = run_helm("template", "whisper", str(CHART), "--namespace", "speech", *arguments)
    assert done.returncode == 0, done.stderr
    objects = [item for item in yaml.safe_load_all(done.stdout) if item]
    by_kind = {item["kind"]: item for item in objects}
    assert len(by_kind) == len(objects)
    return by_kind


def refusal(*arguments: str) -> str:
    """Helm's error message for values that the chart refuses."""
    done = run_helm("template", "whisper", str(CHART), *arguments)
    assert done.returncode != 0, done.stdout
    return done.stderr


def validate(manifest: Manifest, version: str) -> None:
    """Raises when a field is unknown, missing or of a wrong type. `version`: Kubernetes' version, for its own kinds."""
    if manifest["apiVersion"].startswith(CUSTOM):
        jsonschema.Draft202012Validator(_strict(definition(manifest))).validate(manifest)
    else:
        kubernetes_validate.validate(manifest, version, strict=True)


def definition(manifest: Manifest) -> Mapping[str, Any]:
    """The schema of a custom resource. Without its definition in the state folder the test is skipped."""
    group, _, version = manifest["apiVersion"].partition("/")
    for document in _definitions():
        if (document["spec"]["group"], document["spec"]["names"]["kind"]) == (group, manifest["kind"]):
            schema = next(item["schema"]["openAPIV3Schema"] for item in document["spec"]["versions"] if item["name"] == version)
            return dict(schema)
    pytest.skip(f"no definition of {manifest['kind']} ({group}) in {DEFINITIONS}: docs/kubernetes.md says where they come from")


@functools.cache
def _definitions() -> tuple[Any, ...]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return tuple(yaml.load(path.read_text(), loader) for path in sorted(Path(DEFINITIONS).glob("*.yaml")))


def _strict(schema: Any) -> Any:
    """The schema with unknown fields refused, as `kubectl apply --validate=strict` does."""
    if isinstance(schema, list):
        return [_strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {key: _strict(value) for key, value in schema.items()}
    if isinstance(pattern := schema.get("pattern"), str) and "(?i)" in pattern:
        strict["pattern"] = "(?i)" + pattern.replace("(?i)", "")  # Go allows flags anywhere, Python only in front
    has_fields = isinstance(schema.get("properties"), dict) and schema.get("type") == "object"
    if has_fields and "additionalProperties" not in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        strict["additionalProperties"] = False
    return strict


def containers(manifest: Manifest) -> Iterator[dict[str, Any]]:
    """The containers of a Deployment, those of its initialization included, or of a ServingRuntime."""
    spec = manifest["spec"].get("template", manifest)["spec"]
    yield from (*spec.get("initContainers", ()), *spec["containers"])


def environment(container: Mapping[str, Any]) -> dict[str, str | None]:
    """The container's variables; None for a value that Kubernetes fills in."""
    return {item["name"]: item.get("value") for item in container["env"]}
