"""The table of the container image in docs/container.md."""

from __future__ import annotations

from typing import Any

from .. import results
from ..work import ROOT
from .page import Block, duration, markdown

BLOCK, PAGE = Block("image"), ROOT / "docs" / "container.md"
SMALL = 10_000_000
"""Layers of fewer bytes share a row."""


def update() -> None:
    """Write the tables into docs/container.md when there is a result."""
    content = results.load(results.RESULTS, "image")
    if content:
        BLOCK.put(PAGE, table(content))


def table(content: dict[str, Any]) -> str:
    """What was measured, then a row for each large layer."""
    result, origin, settings = content["result"], content["provenance"], content["settings"]
    dirty = " with changes" if origin["dirty"] else ""
    base = f"a stand-in ({settings['base']}) for the published base image" if settings["stand_in"] else settings["base"]
    rows = [
        ("build without earlier layers", duration(result["build_s"])),
        ("build after a change of one source file", f"{duration(result['rebuild_s'])}; new layers with {_megabytes(result['rebuilt'])}"),
        ("size", f"{_megabytes(result['size'])}, {result['packages']} Python packages"),
        ("start to ready", duration(result["start_s"])),
        ("SIGTERM", f"{result['answered_after_sigterm']} of {result['answered_after_sigterm']} open requests answered, status 0"),
        ("bill of materials", f"{result['components']} Python packages"),
    ]
    return (
        f"Measured on {origin['date'][:10]} at `{origin['commit'][:7]}`{dirty} on {origin['machine']['cores']} cores of an "
        f"{origin['machine']['cpu']}, load average {origin['load_average'][0]:.1f} before; {settings['buildah'].partition(' (')[0]}, "
        f"{settings['podman']}; CPU image with `{settings['model']}` and `LOCKED=1` on {base}.\n\n"
        + markdown({"subject": "---", "result": "---"}, rows)
        + "\n"
        + markdown({"layer": "---", "size": "--:"}, _layers(result["layers"]))
    )


def _layers(layers: list[dict[str, Any]]) -> list[tuple[str, str]]:
    base, *others = layers
    small = [layer["size"] for layer in others if layer["size"] < SMALL]
    large = [(f"`{_short(layer['instruction'])}`", _megabytes(layer["size"])) for layer in others if layer["size"] >= SMALL]
    return [("the base image", _megabytes(base["size"])), *large, (f"{len(small)} more: code, samples, settings", _megabytes(sum(small)))]


def _short(instruction: str) -> str:
    """The instruction's first words."""
    return instruction if len(instruction) <= 60 else f"{instruction[:60].rpartition(' ')[0]} …"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size < SMALL else f"{size / 1e6:.0f} MB"
