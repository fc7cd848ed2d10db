"""Recordings without speech."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from bench import (
    sounds,
)
from whispercore.types import SAMPLE_RATE


def test_sounds_are_reproducible_have_the_requested_length_and_are_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sounds, "SCRATCH", tmp_path)
    paths = sounds.recordings(0.04)  # four seconds each
    assert len(paths) == sounds.ROUNDS * len(sounds.KINDS) == len(set(paths))
    assert sum(soundfile.info(path).duration for path in paths) == pytest.approx(144)
    written = [path.stat().st_mtime_ns for path in paths]
    assert sounds.recordings(0.04) == paths and [path.stat().st_mtime_ns for path in paths] == written
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("name", list(sounds.KINDS))
def test_a_sound_is_loud_enough_and_differs_by_number(name: str) -> None:
    first, again, other = (sounds.sound(name, 2, number) for number in (0, 0, 1))
    assert np.array_equal(first, again) and first.dtype == np.float32 and first.shape == (2 * SAMPLE_RATE,)
    if name == "silence":
        assert not first.any()
    else:
        assert 0.04 < np.abs(first).max() <= 0.5 and not np.array_equal(first, other)


def test_the_spectra_of_noise_and_hum() -> None:
    def power(name: str) -> Any:
        return np.abs(np.fft.rfft(sounds.sound(name, 10, 0))) ** 2  # a tenth of a hertz a bin

    white, pink, brown = (power(name)[10_000:11_000].mean() / power(name)[2_000:2_200].mean() for name in list(sounds.KINDS)[:3])
    assert white == pytest.approx(1, rel=0.3) and pink == pytest.approx(0.2, rel=0.3) and brown == pytest.approx(0.04, rel=0.4)
    for hertz in (50, 60):
        hum = power(f"hum-{hertz}Hz")
        assert hum[10 * hertz] > 100 * hum[10 * hertz + 50 : 10 * hertz + 90].max()
