"""The workflow for public CI runs the repository's own checks with every Python version that is supported."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[3]
JOB: dict[str, Any] = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]["test"]


def test_it_runs_what_a_developer_runs() -> None:
    commands = [step["run"].split()[0] for step in JOB["steps"] if "run" in step]
    assert commands == ["./test.sh", "build/venv/bin/python", ".ci/run"]


def test_the_oldest_python_is_the_one_of_the_package() -> None:
    (oldest,) = re.findall(r'^requires-python = ">=(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    versions = JOB["strategy"]["matrix"]["python"]
    assert versions[0] == oldest and all(isinstance(version, str) for version in versions), "unquoted, 3.10 is the number 3.1"


def test_it_uses_public_actions_only() -> None:
    assert all(step["uses"].startswith("actions/") for step in JOB["steps"] if "uses" in step)
