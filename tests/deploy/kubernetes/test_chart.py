"""The Helm chart, rendered by Helm itself: strictly valid, locked down, and consistent with the server."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import jsonschema
import pytest
import yaml

from gateway.configuration import Configuration
from tests.deploy.binaries import ROOT
from tests.deploy.kubernetes.manifests import CHART, Manifest, containers, environment, refusal, render, run_helm, validate
from whispercore import __version__
from whispercore.errors import ConfigurationError
from whispercore.settings import unknown_variables

GPU = ("--values", str(CHART / "values-gpu.yaml"))
EVERYTHING = (
    *("--set", "apiKeys.secret=whisper-api-keys,ingress.enabled=true,ingress.tlsSecret=whisper-tls,autoscaling.kind=keda"),
    *("--set", "serviceMonitor.enabled=true,serviceMonitor.labels.release=kube-prometheus-stack,alerts.enabled=true"),
    *("--set", "model.source=claim,model.name=small,model.claim=weights,runtimeClassName=nvidia,priorityClassName=high"),
    *("--set", "image.pullSecrets={login},podLabels.team=speech,podAnnotations.note=text,nodeSelector.disk=ssd"),
    *("--set-json", 'env=[{"name":"WHISPER_BATCH_SIZE","value":"8"}]'),
    *("--set-json", 'networkPolicy.from=[{"ipBlock":{"cidr":"10.0.0.0/8"}}]'),
    *("--set-json", 'networkPolicy.egress=[{"ports":[{"port":443,"protocol":"TCP"}]}]'),
    *("--set-json", 'topologySpreadConstraints=[{"maxSkew":1,"topologyKey":"zone","whenUnsatisfiable":"DoNotSchedule"}]'),
    *("--set-json", 'affinity={"nodeAffinity":{}}'),
)
PROFILES = {
    "cpu": (),
    "gpu": GPU,
    "everything": EVERYTHING,
    "hpa": ("--set", "autoscaling.kind=hpa"),
    "jobs": ("--set", "data.size=20Gi,data.storageClass=fast"),
    "download": ("--set", "model.source=download,model.name=base,model.download.arguments={--ct2}"),
}
KINDS = {
    "cpu": {"ServiceAccount", "Service", "Deployment", "PodDisruptionBudget", "NetworkPolicy"},
    "gpu": {"PersistentVolumeClaim"},
    "everything": {"Ingress", "ScaledObject", "ServiceMonitor", "PrometheusRule"},
    "hpa": {"HorizontalPodAutoscaler"},
    "jobs": {"PersistentVolumeClaim"},
    "download": set[str](),
}
# The oldest version that Chart.yaml allows, and the newest that the validator knows.
VERSIONS = ("1.25.0", "1.37.0")


def pod(*arguments: str) -> dict[str, Any]:
    spec: dict[str, Any] = render(*arguments)["Deployment"]["spec"]["template"]["spec"]
    return spec


def server(*arguments: str) -> dict[str, Any]:
    container: dict[str, Any] = pod(*arguments)["containers"][0]
    return container


@pytest.mark.parametrize("values", [(), GPU], ids=["cpu", "gpu"])
def test_helm_finds_no_fault(values: tuple[str, ...]) -> None:
    done = run_helm("lint", "--strict", str(CHART), *values)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 chart(s) linted, 0 chart(s) failed" in done.stdout + done.stderr


@pytest.mark.parametrize("profile", PROFILES)
def test_each_profile_has_its_objects(profile: str) -> None:
    assert set(render(*PROFILES[profile])) == KINDS["cpu"] | KINDS[profile]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("profile", "kind"), [(profile, kind) for profile in PROFILES for kind in sorted(KINDS["cpu"] | KINDS[profile])])
def test_the_objects_are_strictly_valid(profile: str, kind: str, version: str) -> None:
    validate(render(*PROFILES[profile])[kind], version)


def test_the_validator_refuses_a_misspelt_field() -> None:
    broken: Manifest = json.loads(json.dumps(render()["Deployment"]))
    broken["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(jsonschema.ValidationError, match="readynessProbe"):
        validate(broken, VERSIONS[-1])


def test_all_objects_are_found_by_the_same_labels() -> None:
    objects = render(*EVERYTHING)
    labels = objects["Deployment"]["spec"]["template"]["metadata"]["labels"]
    selectors = (
        objects["Service"]["spec"]["selector"],
        *(objects[kind]["spec"]["selector"]["matchLabels"] for kind in ("Deployment", "PodDisruptionBudget")),
        objects["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
    )
    assert all(selector and selector.items() <= labels.items() for selector in selectors)
    monitor = objects["ServiceMonitor"]["spec"]["selector"]["matchLabels"]
    assert monitor.items() <= objects["Service"]["metadata"]["labels"].items()
    assert objects["ServiceMonitor"]["spec"]["endpoints"][0]["port"] == objects["Service"]["spec"]["ports"][0]["name"]


def test_probes_ask_for_the_true_state() -> None:
    container = server()
    paths = {name: container[name]["httpGet"] for name in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert paths == {
        "startupProbe": {"path": "/health/ready", "port": "http"},
        "readinessProbe": {"path": "/health/ready", "port": "http"},
        "livenessProbe": {"path": "/health/live", "port": "http"},
    }
    assert {port["name"]: port["containerPort"] for port in container["ports"]} == {"http": 8000}


@pytest.mark.parametrize("seconds", [5, 7, 900])
def test_the_startup_probe_lasts_as_long_as_the_start(seconds: int) -> None:
    deployment = render("--set", f"startupSeconds={seconds}")["Deployment"]["spec"]
    probe = deployment["template"]["spec"]["containers"][0]["startupProbe"]
    assert 0 <= probe["failureThreshold"] * probe["periodSeconds"] - seconds < probe["periodSeconds"]
    assert deployment["progressDeadlineSeconds"] > seconds


@pytest.mark.parametrize("arguments", [(), ("--set", "graceSeconds=900,preStopSeconds=30")], ids=["default", "longer"])
def test_the_pod_is_killed_only_after_the_server_has_drained(arguments: tuple[str, ...]) -> None:
    container, spec = server(*arguments), pod(*arguments)
    command, seconds = container["lifecycle"]["preStop"]["exec"]["command"]
    grace = environment(container)["WHISPER_GRACE_SECONDS"]
    assert command == "sleep" and grace is not None
    assert spec["terminationGracePeriodSeconds"] == int(seconds) + int(grace) + 15


def test_only_the_front_door_listens_beyond_the_pod() -> None:
    variables = environment(server(*EVERYTHING))
    addresses = {name: value for name, value in variables.items() if name.endswith("_ADDRESS")}
    assert addresses.pop("WHISPER_GATEWAY_ADDRESS") == "http://0.0.0.0:8000"
    assert set(addresses) == {"TS_INFERENCE_ADDRESS", "TS_MANAGEMENT_ADDRESS", "TS_METRICS_ADDRESS"}
    assert all(str(value).startswith("http://127.0.0.1:") for value in addresses.values())


@pytest.mark.parametrize("profile", PROFILES)
def test_the_pod_meets_the_restricted_standard(profile: str) -> None:
    """Kubernetes' Pod Security Standard "restricted", and a read-only root."""
    spec = pod(*PROFILES[profile])
    assert spec["securityContext"]["runAsNonRoot"] is True and spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert (spec["securityContext"]["runAsUser"], spec["securityContext"]["runAsGroup"]) == (1000, 0)
    assert spec["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
    assert all(set(volume) & {"emptyDir", "persistentVolumeClaim", "secret"} for volume in spec["volumes"])
    for container in containers(render(*PROFILES[profile])["Deployment"]):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert not {port.get("hostPort") for port in container.get("ports", ())} - {None}
        assert container["resources"]["limits"]["memory"] and container["resources"]["requests"]["cpu"]


@pytest.mark.parametrize("profile", PROFILES)
def test_what_is_written_has_a_volume(profile: str) -> None:
    spec = pod(*PROFILES[profile])
    volumes = {volume["name"] for volume in spec["volumes"]}
    for container in containers(render(*PROFILES[profile])["Deployment"]):
        mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
        assert {mount["name"] for mount in mounts.values()} <= volumes
        assert not mounts["/tmp"].get("readOnly")
    variables = environment(server(*PROFILES[profile]))
    assert variables["WHISPER_STATE_DIR"] in {mount["mountPath"] for mount in server()["volumeMounts"]}


def test_a_gpu_pod_asks_for_a_gpu() -> None:
    container, spec = server(*GPU), pod(*GPU)
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert environment(container)["WHISPER_DEVICE"] == "cuda"
    assert spec["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert pod(*GPU, "--set", "runtimeClassName=nvidia")["runtimeClassName"] == "nvidia"
    assert render(*GPU)["Deployment"]["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}


def test_api_keys_are_a_file_of_a_secret() -> None:
    spec, container = pod(*EVERYTHING), server(*EVERYTHING)
    volume = next(volume for volume in spec["volumes"] if volume["name"] == "api-keys")
    mount = next(mount for mount in container["volumeMounts"] if mount["name"] == "api-keys")
    assert volume["secret"] == {"secretName": "whisper-api-keys", "defaultMode": 0o440}
    assert mount["readOnly"] is True and "subPath" not in mount
    assert environment(container)["WHISPER_API_KEYS_FILE"] == f"{mount['mountPath']}/keys.yaml"
    assert "WHISPER_ALLOW_ANONYMOUS" not in environment(container)
    assert "WHISPER_API_KEYS_FILE" not in environment(server()) and environment(server())["WHISPER_ALLOW_ANONYMOUS"] == "true"


def test_the_model_of_the_image_is_the_default() -> None:
    variables = environment(server())
    assert "WHISPER_MODEL" not in variables
    assert variables["TS_MODEL_STORE"] == "/var/lib/whisper/model-store"
    assert variables["WHISPER_CONVERTED_DIR"] == "/var/lib/whisper/models"


@pytest.mark.parametrize("arguments", [GPU, PROFILES["download"]], ids=["kept", "for each pod"])
def test_a_model_is_downloaded_before_the_server_starts(arguments: tuple[str, ...]) -> None:
    spec = pod(*arguments)
    download, main = spec["initContainers"][0], spec["containers"][0]
    variables = environment(main)
    assert download["command"][:2] == ["/opt/venv/bin/python", "/opt/whisper/clients/download_model.py"]
    assert (ROOT / "clients" / "download_model.py").is_file()
    assert download["command"][2:5] == [variables["WHISPER_MODEL"], "--dir", variables["WHISPER_MODELS_DIR"]]
    assert {"name": "weights", "mountPath": "/weights"} in download["volumeMounts"]
    assert {"name": "weights", "mountPath": "/weights", "readOnly": True} in main["volumeMounts"]
    assert download["image"] == main["image"]
    volume = next(volume for volume in spec["volumes"] if volume["name"] == "weights")
    claim = render(*arguments).get("PersistentVolumeClaim")
    assert volume == (
        {"name": "weights", "persistentVolumeClaim": {"claimName": claim["metadata"]["name"]}}
        if claim
        else {"name": "weights", "emptyDir": {}}
    )


def test_jobs_are_kept_on_a_volume_of_one_pod() -> None:
    objects, container = render(*PROFILES["jobs"]), server(*PROFILES["jobs"])
    claim = objects["PersistentVolumeClaim"]
    assert claim["spec"] == {
        "accessModes": ["ReadWriteOnce"],
        "storageClassName": "fast",
        "resources": {"requests": {"storage": "20Gi"}},
    }
    assert {"name": "data", "persistentVolumeClaim": {"claimName": claim["metadata"]["name"]}} in pod(*PROFILES["jobs"])["volumes"]
    assert {"name": "data", "mountPath": environment(container)["WHISPER_DATA_DIR"]} in container["volumeMounts"]
    assert objects["Deployment"]["spec"]["strategy"] == {"type": "Recreate"}


def test_an_autoscaler_owns_the_number_of_pods() -> None:
    assert render()["Deployment"]["spec"]["replicas"] == 1
    for profile in ("everything", "hpa"):
        assert "replicas" not in render(*PROFILES[profile])["Deployment"]["spec"]


def test_both_autoscalers_follow_the_waiting_audio() -> None:
    hpa, keda = render(*PROFILES["hpa"])["HorizontalPodAutoscaler"]["spec"], render(*EVERYTHING)["ScaledObject"]["spec"]
    metric, trigger = hpa["metrics"][0]["pods"], keda["triggers"][0]["metadata"]
    assert metric == {"metric": {"name": "whisper_waiting_audio_seconds"}, "target": {"type": "AverageValue", "averageValue": "300"}}
    assert trigger["query"] == 'sum(whisper_waiting_audio_seconds{namespace="speech",service="whisper"})'
    assert trigger["threshold"] == "300" and trigger["ignoreNullValues"] == "false"
    assert hpa["behavior"] == keda["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    assert hpa["scaleTargetRef"]["name"] == keda["scaleTargetRef"]["name"] == "whisper"
    assert (hpa["minReplicas"], hpa["maxReplicas"]) == (keda["minReplicaCount"], keda["maxReplicaCount"]) == (1, 4)


def test_the_network_policy_closes_what_is_not_needed() -> None:
    policy = render()["NetworkPolicy"]["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert policy["egress"] == []
    assert policy["ingress"] == [{"ports": [{"port": "http", "protocol": "TCP"}], "from": [{"podSelector": {}}]}]
    opened = render(*EVERYTHING)["NetworkPolicy"]["spec"]
    namespaces = [peer["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"] for peer in opened["ingress"][0]["from"][1:3]]
    assert namespaces == ["ingress-nginx", "monitoring"]
    downloading = render(*PROFILES["download"])["NetworkPolicy"]["spec"]["egress"]
    assert {(port["port"], port["protocol"]) for port in downloading[0]["ports"]} == {(53, "UDP"), (53, "TCP"), (443, "TCP")}


def test_the_ingress_publishes_no_metrics() -> None:
    ingress = render(*EVERYTHING)["Ingress"]["spec"]
    paths = [(path["path"], path["pathType"]) for path in ingress["rules"][0]["http"]["paths"]]
    assert paths == [("/", "Exact"), ("/page", "Prefix"), ("/v1", "Prefix"), ("/predictions/whisper", "Prefix")]
    assert ingress["tls"] == [{"hosts": ["whisper.example.com"], "secretName": "whisper-tls"}]
    annotations = render(*EVERYTHING)["Ingress"]["metadata"]["annotations"]
    limit = Configuration.load({}).max_body_bytes
    assert annotations["nginx.ingress.kubernetes.io/proxy-body-size"] == f"{limit // 2**20}m"


def test_the_rules_are_the_alerts() -> None:
    assert render(*EVERYTHING)["PrometheusRule"]["spec"] == yaml.safe_load((CHART / "alerts.yaml").read_text())


@pytest.mark.parametrize("profile", PROFILES)
def test_the_server_knows_each_variable(profile: str) -> None:
    for container in containers(render(*PROFILES[profile])["Deployment"]):
        assert unknown_variables({name: value or "4" for name, value in environment(container).items()}) == ()


def test_variables_of_services_do_not_reach_the_server() -> None:
    """For a service named whisper-models Kubernetes sets a variable at which the server stops."""
    assert pod()["enableServiceLinks"] is False
    with pytest.raises(ConfigurationError):
        unknown_variables({"WHISPER_MODELS_PORT": "tcp://10.0.0.1:8000"})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--set", "replcas=2"), "replcas"),
        (("--set", "model.nam=base"), "nam"),
        (("--set", "device=gpu"), "must be one of"),
        (("--set", "replicas=two"), "replicas"),
        (("--set", "graceSeconds=0"), "graceSeconds"),
        (("--set", "autoscaling.kind=kpa"), "must be one of"),
        (("--set-json", 'env=[{"nam":"A"}]'), "nam"),
        (("--set-json", 'env=[{"name":"WHISPER_THREADS","value":"2"}]'), "env must not set WHISPER_THREADS"),
        (("--set", "model.name=base"), "set model.source to download or claim, or leave model.name empty"),
        (("--set", "model.source=download"), "set model.name to the model's name"),
        (("--set", "model.source=claim,model.name=base"), "set model.claim to the name of the PersistentVolumeClaim"),
        (("--set", "device=cuda"), "use -f values-gpu.yaml"),
        (("--set", "ingress.enabled=true"), "ingress.enabled publishes the server, which has no API keys: set apiKeys.secret"),
        (("--set", "service.type=LoadBalancer"), "service.type LoadBalancer publishes the server"),
        (("--set", "networkPolicy.enabled=false"), "without networkPolicy.enabled each pod of the cluster reaches the server"),
        (("--set", "data.size=20Gi,replicas=2"), "data.size keeps the jobs on a volume for one pod"),
        (("--set", "data.size=20Gi,autoscaling.kind=hpa"), "data.size keeps the jobs on a volume for one pod"),
        (("--set", "autoscaling.minReplicas=5"), "more than autoscaling.maxReplicas"),
    ],
)
def test_wrong_values_are_refused(arguments: tuple[str, ...], message: str) -> None:
    assert message in refusal(*arguments)


def fields(schema: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, part in schema.get("properties", {}).items():
        yield prefix + name
        yield from fields(part, f"{prefix}{name}.")


def keys(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in values.items():
        yield prefix + name
        if isinstance(value, dict):
            yield from keys(value, f"{prefix}{name}.")


def test_the_schema_and_the_values_name_the_same() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    free = ("resources.requests.", "resources.limits.", "ingress.annotations.", "strategy.")
    values = {key for key in keys(yaml.safe_load((CHART / "values.yaml").read_text())) if not key.startswith(free)}
    assert values == {field for field in fields(schema) if not field.startswith(free)} - {"global"}


def test_the_chart_has_the_version_of_the_server() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == __version__
    tags = [yaml.safe_load((CHART / name).read_text())["image"]["tag"] for name in ("values.yaml", "values-gpu.yaml")]
    assert tags == [f"{__version__}-cpu", __version__]


def test_env_must_not_set_what_the_chart_sets() -> None:
    """The check in _helpers.tpl knows each variable of the container."""
    helpers = (CHART / "templates" / "_helpers.tpl").read_text()
    own = {name for profile in PROFILES if profile != "everything" for name in environment(server(*PROFILES[profile]))}
    assert {name for name in own | {"WHISPER_API_KEYS_FILE"} if f'"{name}"' not in helpers} == set()


def test_the_notes_tell_what_to_do_next() -> None:
    notes = run_helm("install", "whisper", str(CHART), "--dry-run=client", "--namespace", "speech")
    if notes.returncode:
        pytest.skip(f"this helm renders notes only with a cluster: {notes.stderr[-200:]}")
    text = notes.stdout.partition("NOTES:")[2]
    assert "kubectl --namespace speech rollout status deployment/whisper --timeout 900s" in text
    assert "/v1/audio/transcriptions" in text and "create secret generic whisper-api-keys" in text
