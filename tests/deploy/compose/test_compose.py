"""compose.yaml: consistent with the server and the chart, and closed to the outside but for the proxy."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from gateway.keys import main as make_key
from gateway.keys import read_keys
from tests.deploy.binaries import ROOT
from tests.deploy.compose.compose_file import COMPOSE, read, variables
from whispercore import __version__
from whispercore.settings import unknown_variables

CLEAN: dict[str, str] = {}
SERVICES: dict[str, Any] = read(environ=CLEAN)["services"]
WHISPER = SERVICES["whisper"]


def test_the_four_services() -> None:
    assert set(SERVICES) == {"whisper", "caddy", "prometheus", "grafana"}


@pytest.mark.parametrize("name", SERVICES)
def test_each_service_is_locked_down(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True and service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service.get("cap_add", []) == (["NET_BIND_SERVICE"] if name == "caddy" else [])
    assert service["restart"] == "unless-stopped"


@pytest.mark.parametrize("name", SERVICES)
def test_images_are_pinned(name: str) -> None:
    tag = SERVICES[name]["image"].rpartition(":")[2]
    assert re.match(r"v?\d+\.\d+\.\d+", tag)


def test_only_the_proxy_is_public() -> None:
    published = {name: service.get("ports", []) for name, service in SERVICES.items()}
    assert published["whisper"] == []
    assert published["caddy"] == ["80:80", "443:443"]
    assert all(port.startswith("127.0.0.1:") for name in ("prometheus", "grafana") for port in published[name])
    assert SERVICES["caddy"]["networks"] == ["front"] and SERVICES["prometheus"]["networks"] == ["metrics"]


def test_only_the_front_door_listens_beyond_the_container() -> None:
    addresses = {name: value for name, value in WHISPER["environment"].items() if name.endswith("_ADDRESS")}
    assert addresses.pop("WHISPER_GATEWAY_ADDRESS") == "http://0.0.0.0:8000"
    assert set(addresses) == {"TS_INFERENCE_ADDRESS", "TS_MANAGEMENT_ADDRESS", "TS_METRICS_ADDRESS"}
    assert all(value.startswith("http://127.0.0.1:") for value in addresses.values())


def test_the_container_is_killed_only_after_the_server_has_drained() -> None:
    assert WHISPER["stop_grace_period"] == f"{WHISPER['environment']['WHISPER_GRACE_SECONDS'] + 15}s"


def test_api_keys_are_needed() -> None:
    assert WHISPER["environment"]["WHISPER_API_KEYS_FILE"] == f"/run/secrets/{WHISPER['secrets'][0]}"
    assert "WHISPER_ALLOW_ANONYMOUS" not in WHISPER["environment"]


def test_the_health_check_asks_for_readiness() -> None:
    assert WHISPER["healthcheck"]["test"][-1] == "http://127.0.0.1:8000/health/ready"


@pytest.mark.parametrize("name", ["compose.yaml", "compose.gpu.yaml"])
def test_the_server_knows_each_variable(name: str) -> None:
    environment = read(name, CLEAN)["services"]["whisper"]["environment"]
    assert unknown_variables({name: str(value) for name, value in environment.items()}) == ()


def test_the_image_has_the_version_of_the_server() -> None:
    assert WHISPER["image"] == f"whisper-torchserve:{__version__}-cpu"
    assert read("compose.gpu.yaml", CLEAN)["services"]["whisper"]["image"] == f"whisper-torchserve:{__version__}"


def test_a_gpu_is_reserved() -> None:
    service = read("compose.gpu.yaml", CLEAN)["services"]["whisper"]
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    assert service["environment"] == {"WHISPER_DEVICE": "cuda", "WHISPER_MODEL": "large-v3-turbo"}
    assert service["build"]["args"]["DEVICE"] == "gpu"


def test_every_mounted_file_exists() -> None:
    mounts = [volume.split(":")[0] for service in SERVICES.values() for volume in service["volumes"]]
    files = [mount for mount in mounts if mount.startswith(".") and mount != "./certificates"]
    assert len(files) == 5
    assert all((COMPOSE / file).exists() for file in files)
    named = {mount for mount in mounts if not mount.startswith(".")}
    assert named == set(read()["volumes"])


def test_prometheus_scrapes_the_front_door() -> None:
    scrape = yaml.safe_load((COMPOSE / "prometheus" / "prometheus.yaml").read_text())["scrape_configs"][0]
    assert scrape["static_configs"] == [{"targets": ["whisper:8000"]}] and scrape["job_name"] == "whisper"


def test_the_example_names_the_variables() -> None:
    """WHISPER_MODEL and GPUS are those of compose.gpu.yaml alone."""
    named = set(re.findall(r"^#?([A-Z_]+)=", (COMPOSE / "example.env").read_text(), re.MULTILINE))
    used = variables("compose.yaml") | variables("compose.gpu.yaml")
    assert named <= used
    assert used - named <= {"WHISPER_MODEL", "GPUS", "CADDY_IMAGE", "PROMETHEUS_IMAGE", "GRAFANA_IMAGE", "CERTIFICATES"}


def test_secrets_are_not_committed() -> None:
    ignored = (COMPOSE / ".gitignore").read_text().split()
    for secret in read(environ=CLEAN)["secrets"].values():
        assert "/" + secret["file"].removeprefix("./") in ignored


def test_the_documented_way_makes_a_file_of_keys(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """`echo keys:` and then an entry for each key: docs/compose.md."""
    assert "(echo keys:; " in (ROOT / "docs" / "compose.md").read_text()
    assert make_key(["alice"]) == 0
    file = tmp_path / "api-keys.yaml"
    file.write_text("keys:\n" + capsys.readouterr().out)
    assert [key.name for key in read_keys(file)] == ["alice"]
