"""Audio files → windows: decode by the recording's clock, resample to mono 16 kHz, detect voices, cut and pack."""

from __future__ import annotations

from .recording import Recording as Recording
from .recording import open_recording as open_recording
from .recording import read_samples as read_samples
