"""Cores are those that the process may run on, not all of the machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from whispercore import devices
from whispercore.devices import decoding_threads, logical_cores, physical_cores, reading_lanes
from whispercore.settings import Settings


def test_only_the_cores_of_the_cpu_affinity_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_CPU_QUOTAS", ())
    allowed = os.sched_getaffinity(0)
    assert 1 <= physical_cores() <= logical_cores() == len(allowed)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert physical_cores() == logical_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "5000 100000\n"}, 1),
        ({"cpu.max": "max 100000\n"}, 64),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 64),
        ({"cpu/cpu.cfs_quota_us": "400000\n"}, 64),
        ({}, 64),
    ],
)
def test_a_containers_quota_counts(files: dict[str, str], cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    quotas = [[tmp_path / file.relative_to("/sys/fs/cgroup") for file in pair] for pair in devices._CPU_QUOTAS]
    monkeypatch.setattr(devices, "_CPU_QUOTAS", quotas)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(64)))
    monkeypatch.setattr(devices, "_siblings", str)
    assert physical_cores() == logical_cores() == cores


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
