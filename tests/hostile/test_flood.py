"""A short run of `python -m bench hostile`: damaged recordings and odd options beside an innocent client."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import hostile
from tests.hostile.conftest import Figure

pytestmark = [pytest.mark.serve, pytest.mark.slow]
ATTACKS, MINUTES = 400, 0.75
"""Of each kind, and the time after which no more are sent."""


def test_a_flood_of_attacks_costs_nobody_else_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, figure: Figure) -> None:
    monkeypatch.setattr(hostile, "FAILURES", tmp_path / "failures")
    command = ["--media", str(ATTACKS), "--options", str(ATTACKS), "--minutes", str(MINUTES), "--kills", "0", "--stops", "0"]
    status = hostile.main([*command, "--seed", "1", "--results", str(tmp_path)])
    result = json.loads((tmp_path / "hostile.json").read_text())["result"]
    kinds, innocent = result["attacks"], result["innocent"]
    for kind, figures in kinds.items():
        figure(f"{figures['sent']} attacks ({kind}): statuses {figures['statuses']}, faults {figures['faults']}")
    good = f"{innocent['lost']} of {innocent['answered'] + innocent['lost']} good requests lost, p95 {innocent['p95']} s"
    figure(f"{result['dead_workers']} dead workers, {good}")
    assert all(not figures["faults"] and not figures["without_a_reason"] for figures in kinds.values()), kinds
    assert result["dead_workers"] == 0
    assert innocent["lost"] == 0, innocent["instead"]
    assert status == 0
    assert all(figures["sent"] >= 50 for figures in kinds.values()) and innocent["answered"] >= 5, "the run was too short to show anything"
    assert {"200", "400"} <= kinds["options"]["statuses"].keys() and {"200", "415", "422"} <= kinds["media"]["statuses"].keys()
