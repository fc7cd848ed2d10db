"""The alert rules: tested by promtool, and each explained in the runbook."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import yaml

from tests.deploy.binaries import ROOT, binary

COMPOSE = ROOT / "deploy" / "compose"
ALERTS = ROOT / "deploy" / "kubernetes" / "whisper" / "alerts.yaml"
RULE_TESTS = Path(__file__).with_name("alerts-test.yaml")
UNTESTED = "the alert rules are not tested"


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def promtool(*arguments: str) -> str:
    done = subprocess.run([binary("promtool", UNTESTED), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_promtool_accepts_the_configuration(tmp_path: Path) -> None:
    shutil.copy(ALERTS, tmp_path)
    shutil.copy(COMPOSE / "prometheus" / "prometheus.yaml", tmp_path)
    assert f"{len(rules())} rules found" in promtool("check", "config", str(tmp_path / "prometheus.yaml"))


def test_each_alert_fires_when_it_should(tmp_path: Path) -> None:
    shutil.copy(ALERTS, tmp_path)
    shutil.copy(RULE_TESTS, tmp_path)
    assert "SUCCESS" in promtool("test", "rules", str(tmp_path / RULE_TESTS.name))


def test_no_alert_is_left_out() -> None:
    """Each is seen to fire, and to be silent."""
    cases = [case for test in yaml.safe_load(RULE_TESTS.read_text())["tests"] for case in test["alert_rule_test"]]
    names = {rule["alert"] for rule in rules()}
    assert {case["alertname"] for case in cases if case.get("exp_alerts")} == names
    assert {case["alertname"] for case in cases if not case.get("exp_alerts")} == names


def test_each_alert_has_a_section_of_the_runbook() -> None:
    page = (ROOT / "docs" / "runbook.md").read_text()
    sections = dict(re.findall(r"^## (Whisper\w+)\n(.*?)(?=^## |\Z)", page, re.DOTALL | re.MULTILINE))
    assert set(sections) == {rule["alert"] for rule in rules()}
    for rule in rules():
        assert rule["annotations"]["runbook"] == f"docs/runbook.md#{rule['alert'].lower()}"
        assert rule["labels"]["severity"] in ("critical", "warning")
        for part in ("**Means:**", "**Look at:**", "**Do:**"):
            assert part in sections[rule["alert"]], f"{rule['alert']} in docs/runbook.md has no {part}"
