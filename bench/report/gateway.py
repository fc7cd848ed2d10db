"""The table of the gateway in docs/measured.md."""

from __future__ import annotations

from typing import Any

from .. import results
from .page import MEASURED, Block, markdown, median

BLOCK = Block("gateway")
ROADS = {
    "core": "the core, called in process",
    "inprocess": "the gateway over the core (`--inprocess`)",
    "torchserve": "TorchServe",
    "gateway": "the gateway before TorchServe",
}


_TITLES = {"road": "---", "a clip of 10 s": "--:", "more than the core": "--:", "an hour": "--:"}


def update() -> None:
    """Write the table into docs/measured.md when there is a result."""
    content = results.load(results.RESULTS, "gateway")
    if content:
        BLOCK.put(MEASURED, table(content))


def table(content: dict[str, Any]) -> str:
    """A row for each road."""
    result, origin = content["result"], content["provenance"]
    rows = []
    for name, words in ROADS.items():
        over = result["overhead_ms"].get(name)
        clip, hour = result["clip_ms"][name], result["hour_s"][name]
        rows.append((words, median(clip, 1, " ms"), median(over, 1, " ms") if over else "", median(hour, 2, " s")))
    dirty = " with changes" if origin["dirty"] else ""
    machine = f"{origin['machine']['cores']} cores of an {origin['machine']['cpu']}"
    return f"Measured by `python -m bench gateway` at `{origin['commit'][:7]}`{dirty} on {machine}.\n\n" + markdown(_TITLES, rows)
