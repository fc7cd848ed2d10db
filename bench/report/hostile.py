"""What a server stood: the attacks of `bench hostile`, in a few lines in README.md and a table in docs/measured.md."""

from __future__ import annotations

import textwrap
from itertools import groupby
from pathlib import Path
from typing import Any

from ..results import RESULTS, load
from .page import MEASURED, README, Block, markdown, verdict

BLOCK = Block("attacks")
_FRONTS = {"torchserve": "TorchServe's own port", "gateway": "Through the gateway", "inprocess": "The gateway in process"}
_KINDS = {"media": "damaged recordings", "options": "requests with odd options"}


def stood(result: dict[str, Any]) -> bool:
    """Whether every attack got an answer that is no 5xx and has a reason, no worker died of one, and the innocent client
    lost nothing."""
    faults = sum(sum(figures["faults"].values()) + figures["without_a_reason"] for figures in result["attacks"].values())
    return not (faults or result["dead_workers"] or result["innocent"]["lost"])


def table(folder: Path = RESULTS) -> str:
    """Every figure of hostile.json; empty when it has not been measured."""
    content = load(folder, "hostile")
    if not content:
        return ""
    result, settings = content["result"], content["settings"]
    titles = {
        "attacks": "---",
        "sent": "--:",
        "answers": "---",
        "5xx": "--:",
        "no answer": "--:",
        "without a reason": "--:",
        "slowest": "--:",
    }
    rows = [_row(kind, figures) for kind, figures in result["attacks"].items()]
    innocent, memory = result["innocent"], result["memory_mb"]
    lines = [
        f"workers that died: {result['dead_workers']}",
        f"the innocent client: {innocent['answered'] + innocent['lost']} requests, {innocent['lost']} lost; "
        f"median {innocent['p50']:.2f} s, p95 {innocent['p95']:.2f} s, longest {innocent['max']:.2f} s",
        "memory at the start and at the end: "
        + ", ".join(f"{role} {megabytes['start']:.0f} and {megabytes['end'] or 0:.0f} MB" for role, megabytes in memory.items()),
        *(_after_kills(list(kills)) for _, kills in groupby(result["kills"], key=lambda kill: (kill["process"], kill["signal"]))),
        f"goal: no 5xx, no request without an answer or a reason, no dead worker, no lost request: {verdict(stood(result))}",
    ]
    front, formats, seed = _FRONTS[settings["front"]], settings["formats"], settings["seed"]
    how = f"{front}; {settings['together']} at once for {result['minutes']:.0f} minutes, {formats} formats, seed {seed}."
    return f"{_origin(content)}\n{how}\n\n{markdown(titles, rows)}\n" + "".join(f"- {line}\n" for line in lines)


def readme(folder: Path = RESULTS) -> str:
    """The same in two sentences."""
    content = load(folder, "hostile")
    if not content:
        return ""
    result = content["result"]
    sent = " and ".join(f"{figures['sent']:,} {_KINDS[kind]}" for kind, figures in result["attacks"].items())
    innocent = result["innocent"]
    lines = [
        f"{sent}, {content['settings']['together']} at once:",
        f"{_server_errors(result)} answers with a 5xx, {result['dead_workers']} dead workers,",
        f"{innocent['lost']} of {innocent['answered'] + innocent['lost']:,} requests of another client lost (p95 {innocent['p95']:.1f} s).",
    ]
    kills = [kill for kill in result["kills"] if kill["signal"] == "SIGKILL"]
    if kills:
        lines.append(f"After a kill -9 of a process the next good reply came within {max(kill['good_seconds'] for kill in kills):.0f} s.")
    lines.append("Measured by `python -m bench hostile`: [docs/measured.md](docs/measured.md#attacks).")
    return textwrap.fill(" ".join(lines), 118, break_long_words=False, break_on_hyphens=False) + "\n"


def update(page: Path = MEASURED, folder: Path = RESULTS) -> None:
    """Write the table into the page. Raises ValueError when the page has no block for it."""
    BLOCK.put(page, table(folder))


def update_readme(page: Path = README, folder: Path = RESULTS) -> bool:
    """Write the README's lines into the page; False when the page has no block for them."""
    text = page.read_text(encoding="utf-8")
    if BLOCK.begin not in text or BLOCK.end not in text:
        return False
    BLOCK.put(page, readme(folder))
    return True


def _origin(content: dict[str, Any]) -> str:
    origin, machine = content["provenance"], content["provenance"]["machine"]
    commit = f"`{origin['commit'][:7]}`" + (" with changes" if origin["dirty"] else "")
    device, load_average = machine["gpu"] or "no GPU", origin["load_average"][0]
    return (
        f"Measured by `python -m bench hostile` at {commit} on {machine['cores']} cores of an {machine['cpu']}, {device}, "
        f"load average {load_average:.1f} before; the bundled model."
    )


def _row(kind: str, figures: dict[str, Any]) -> tuple[str, ...]:
    answers = ", ".join(f"{count:,} × {status}" for status, count in figures["statuses"].items() if status != "0")
    faults = figures["faults"]
    errors, silent = (sum(faults.get(name, 0) for name in names) for names in (("5xx", "error after 200"), ("timeout", "no answer")))
    slowest = f"{figures['slowest']['seconds']:.1f} s"
    return _KINDS[kind], f"{figures['sent']:,}", answers, str(errors), str(silent), str(figures["without_a_reason"]), slowest


def _after_kills(kills: list[dict[str, Any]]) -> str:
    """What became of the open requests and of those sent after each signal of a kind."""
    what = f"{kills[0]['signal']} to the {kills[0]['process']}"
    failed, opened, answered, sent = (
        sum(kill[name] for kill in kills) for name in ("open_failed", "open", "sent_after_answered", "sent_after")
    )
    within = max(kill["open_failed_within_seconds"] for kill in kills)
    good = ", ".join(f"{kill['good_seconds']:.1f}" for kill in kills)
    return (
        f"{what}, {len(kills)} times: {failed} of {opened} open requests got an error, within {within:.1f} s; "
        f"{answered} of {sent} requests sent afterwards were answered; the next good reply after {good} s"
    )


def _server_errors(result: dict[str, Any]) -> int:
    return sum(figures["faults"].get(name, 0) for figures in result["attacks"].values() for name in ("5xx", "error after 200"))
