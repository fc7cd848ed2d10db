"""Cores are those that the process may run on, not all of the machine."""

from __future__ import annotations

import os

import pytest

from whispercore import devices
from whispercore.devices import decoding_threads, logical_cores, physical_cores, reading_lanes
from whispercore.settings import Settings


def test_only_the_cores_of_the_cpu_affinity_count() -> None:
    allowed = os.sched_getaffinity(0)
    assert 1 <= physical_cores() <= logical_cores() == len(allowed)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert physical_cores() == logical_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)


def test_threads_follow_from_physical_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "physical_cores", lambda: 8)
    assert (decoding_threads(Settings()), reading_lanes(Settings())) == (8, 4)
    assert (decoding_threads(Settings(threads=3)), reading_lanes(Settings(readers=1))) == (3, 1)
    monkeypatch.setattr(devices, "physical_cores", lambda: 1)
    assert reading_lanes(Settings()) == 2


@pytest.mark.parametrize(("limit", "multiplies"), [("AVX512_CORE_VNNI", False), ("avx2", False), ("AVX512_CORE_BF16", True), ("ALL", True)])
def test_bfloat16_is_not_used_where_onednns_own_switch_forbids_it(monkeypatch: pytest.MonkeyPatch, limit: str, multiplies: bool) -> None:
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: True)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert devices.multiplies_bfloat16() is multiplies
