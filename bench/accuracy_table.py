"""The accuracy bench's tables."""

from __future__ import annotations

from typing import Any


def line(label: str, name: str, figures: dict[str, Any]) -> str:
    """A row's set in one line, as it is done."""
    wer = "no words said" if figures["wer"] is None else f"WER {figures['wer']:.2%}"
    counts = f"{figures['insertions']} ins {figures['deletions']} del {figures['substitutions']} sub of {figures['words']}"
    parts = [wer, counts]
    if "language_right" in figures and figures["language_right"] < figures["recordings"]:
        parts.append(f"language right {figures['language_right']} of {figures['recordings']}")
    parts.append(f"{figures['seconds']:.0f} s, processor {figures['cpu_seconds']:.0f} s, {figures['peak_rss_mb']:.0f} MB")
    parts += [f"{figures['failed']} failed: {figures['failures'][0]}"] if figures["failed"] else []
    return f"{label} {name}: {', '.join(parts)}"
