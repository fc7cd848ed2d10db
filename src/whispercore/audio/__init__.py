"""Audio files → speech: decoding by the recording's own clock, resampling to mono 16 kHz, voice detection, cutting and packing."""

from __future__ import annotations

from .recording import Recording as Recording
from .recording import open_recording as open_recording
from .recording import read_samples as read_samples
