"""Grafana's dashboard: the query of every panel, run against a Prometheus that has scraped a server, gives numbers."""

from __future__ import annotations

import itertools
import json
import math
import re
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import yaml

from gateway.telemetry import Telemetry
from tests.deploy.binaries import ROOT, binary
from tests.deploy.compose.front_door import StandIn, serving
from tests.deploy.compose.metrics_page import metrics_page
from tests.serve.server import free_ports, wait_for

GRAFANA = ROOT / "deploy" / "compose" / "grafana"
DASHBOARD = json.loads((GRAFANA / "dashboards" / "whisper.json").read_text())
ALERTS = ROOT / "deploy" / "kubernetes" / "whisper" / "alerts.yaml"
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = [(panel["title"], target["expr"]) for panel in PANELS for target in panel["targets"]]


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a Prometheus that scrapes a stand-in every half second, as prometheus.yaml says apart from that."""
    program = binary("prometheus", "the queries of the dashboard are not run")
    folder = tmp_path_factory.mktemp("prometheus")
    (folder / "alerts.yaml").write_text(ALERTS.read_text())
    (port,) = free_ports(1)
    with serving(StandIn()) as target:
        configuration = yaml.safe_load((ROOT / "deploy" / "compose" / "prometheus" / "prometheus.yaml").read_text())
        configuration["global"] = {"scrape_interval": "500ms", "evaluation_interval": "1s"}
        configuration["scrape_configs"][0]["static_configs"] = [{"targets": [f"127.0.0.1:{target}"]}]
        (folder / "prometheus.yaml").write_text(yaml.safe_dump(configuration))
        command = [program, f"--config.file={folder / 'prometheus.yaml'}", f"--storage.tsdb.path={folder / 'data'}"]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen([*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log)
        url = f"http://127.0.0.1:{port}"
        try:
            wait_for(lambda: bool(query(url, "rate(whisper_windows_total[5s]) > 0")), 60, "Prometheus has scraped the server")
            yield url
        finally:
            process.terminate()
            process.wait()


def query(url: str, expression: str) -> list[dict[str, Any]]:
    """The series of an instant query; none while Prometheus does not answer."""
    try:
        reply = requests.get(f"{url}/api/v1/query", params={"query": expression}, timeout=10)
    except requests.ConnectionError:
        return []
    if reply.status_code == 503:  # it is starting
        return []
    assert reply.status_code == 200, reply.text
    series: list[dict[str, Any]] = reply.json()["data"]["result"]
    return series


def filled_in(expression: str) -> str:
    """The expression as Grafana sends it: all servers, a short interval."""
    text = expression.replace("$instance", ".*").replace("$__rate_interval", "5s")
    assert "$" not in text
    return text


@pytest.mark.parametrize(("title", "expression"), QUERIES, ids=[f"{title}-{number}" for number, (title, _) in enumerate(QUERIES)])
def test_every_query_gives_numbers(prometheus: str, title: str, expression: str) -> None:
    series = query(prometheus, filled_in(expression))
    assert series, f"{title}: no data"
    assert all(math.isfinite(float(item["value"][1])) for item in series)


def test_the_choice_of_servers(prometheus: str) -> None:
    """`label_values(METRIC, LABEL)` is Grafana's own; what it needs is that the metric has the label."""
    definition = next(item["query"]["query"] for item in DASHBOARD["templating"]["list"] if item["name"] == "instance")
    found = re.fullmatch(r"label_values\((.+), (\w+)\)", definition)
    assert found and all(found[2] in item["metric"] for item in query(prometheus, found[1])) and query(prometheus, found[1])


def test_nothing_fires_on_a_server_that_is_well(prometheus: str) -> None:
    reply = requests.get(f"{prometheus}/api/v1/rules", timeout=10).json()
    rules = [rule for group in reply["data"]["groups"] for rule in group["rules"]]
    assert len(rules) == len(yaml.safe_load(ALERTS.read_text())["groups"][0]["rules"])
    assert {rule["name"]: rule["state"] for rule in rules if rule["state"] == "firing"} == {}
    assert {rule["name"]: rule.get("lastError") for rule in rules if rule["health"] == "err"} == {}


def test_panels_do_not_overlap() -> None:
    cells = [
        (panel["gridPos"]["x"] + x, panel["gridPos"]["y"] + y)
        for panel in DASHBOARD["panels"]
        for x, y in itertools.product(range(panel["gridPos"]["w"]), range(panel["gridPos"]["h"]))
    ]
    assert len(cells) == len(set(cells)) and max(x for x, _ in cells) == 23
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_every_panel_says_what_it_shows() -> None:
    assert all(panel["title"] and panel["description"] and panel["fieldConfig"]["defaults"]["unit"] for panel in PANELS)


def test_the_data_source_is_provisioned() -> None:
    sources = yaml.safe_load((GRAFANA / "provisioning" / "datasources" / "prometheus.yaml").read_text())["datasources"]
    assert [source["type"] for source in sources] == ["prometheus"]
    variable = next(item for item in DASHBOARD["templating"]["list"] if item["name"] == "datasource")
    assert variable["type"] == "datasource" and variable["query"] == "prometheus"
    assert {target["datasource"]["uid"] for panel in PANELS for target in panel["targets"]} == {"${datasource}"}


def names(page: str) -> set[str]:
    """The metrics of a page, without a histogram's endings."""
    series = re.findall(r"^(whisper_\w+?)(?:_bucket|_count|_sum)?(?:[{ ])", page, re.MULTILINE)
    return set(series)


def test_the_stand_in_has_the_servers_metrics() -> None:
    """Those of the gateway are asked for; config/metrics.yaml lists those of the worker behind TorchServe."""
    telemetry = Telemetry()
    telemetry.requests.labels("/v1/models", "200").inc()
    telemetry.seconds.labels("/v1/models").observe(1)
    telemetry.audio_seconds.labels("alice").inc()
    telemetry.jobs.labels("done").set(1)
    declared = yaml.safe_load((ROOT / "config" / "metrics.yaml").read_text())["model_metrics"]
    worker = {metric["name"] for kind in declared.values() for metric in kind}
    published = worker | names(telemetry.text())
    assert names(metrics_page(60)) - published <= {"whisper_waiting_audio_seconds", "whisper_last_success_timestamp_seconds"}
    assert published - names(metrics_page(60)) <= {"whisper_last_success_seconds"}


def test_the_queries_use_metrics_that_exist() -> None:
    used = {name for _, expression in QUERIES for name in re.findall(r"\bwhisper_\w+", expression)}
    used |= {
        name for rule in yaml.safe_load(ALERTS.read_text())["groups"][0]["rules"] for name in re.findall(r"\bwhisper_\w+", rule["expr"])
    }
    assert {re.sub(r"_bucket$", "", name) for name in used} <= names(metrics_page(60))
