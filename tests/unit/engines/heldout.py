"""The bundled model, and held-out recordings with synthetic voices, for the tests of engines."""

from __future__ import annotations

import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
NANO = ROOT / "whisper-models" / "nano.pt"
HELDOUT = ROOT / "tests" / "data" / "heldout"
SYNTHETIC: tuple[str, ...] = tuple(
    item["file"] for item in json.loads((HELDOUT / "manifest.json").read_text()) if item["kind"] == "synthetic"
)
"""Their files in `HELDOUT`."""
