"""What engine ct2 chooses for the machine: how many windows together."""

from __future__ import annotations

from pathlib import Path

import pytest

from whispercore import devices
from whispercore.engines.ct2 import _lanes, cpu_batch

MB, GB = 10**6, 10**9


@pytest.mark.parametrize(
    ("threads", "weights", "memory", "windows"),
    [
        (1, 80 * MB, 16 * GB, 8),
        (2, 80 * MB, 16 * GB, 8),
        (16, 80 * MB, 64 * GB, 64),
        (16, 1600 * MB, 64 * GB, 19),  # large-v3: a window's keys and values are half a gigabyte
        (2, 1600 * MB, 8 * GB, 1),
        (8, 1600 * MB, 2 * GB, 1),  # it may not fit at all: the scheduler will see
    ],
)
def test_more_windows_on_more_cores_while_memory_holds_them(threads: int, weights: int, memory: int, windows: int) -> None:
    assert cpu_batch(threads, weights, memory) == windows


def test_a_container_has_no_more_memory_than_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit, machine = tmp_path / "memory.max", tmp_path / "meminfo"
    machine.write_text("MemTotal:       16000000 kB\nMemFree:          100000 kB\nMemAvailable:    8000000 kB\nHugePages_Total:       0\n")
    monkeypatch.setattr(devices, "_MEMORY", machine)
    monkeypatch.setattr(devices, "_CONTAINER_LIMIT", limit)
    assert devices.available_memory() == 8_192_000_000  # it is no container
    for written, bytes_ in (("max\n", 8_192_000_000), ("3000000000\n", 3_000_000_000)):
        limit.write_text(written)
        assert devices.available_memory() == bytes_


@pytest.mark.parametrize(("threads", "most", "lanes"), [(1, 8, 1), (2, 8, 2), (3, 12, 3), (4, 1, 1), (4, 3, 2), (24, 16, 12), (64, 16, 16)])
def test_lanes_share_all_threads_equally(threads: int, most: int, lanes: int) -> None:
    assert _lanes(threads, most) == lanes
