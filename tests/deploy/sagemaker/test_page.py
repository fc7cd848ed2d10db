"""docs/sagemaker.md: its limits are those of the code, and its commands are ones that deploy.py takes."""

from __future__ import annotations

import re
import shlex

import pytest

from deploy.sagemaker.deploy import _parser
from deploy.sagemaker.limits import LIMITS, SERVER_BYTES, Mode
from deploy.sagemaker.model_archive import ROOT

PAGE = (ROOT / "docs" / "sagemaker.md").read_text(encoding="utf-8")
BLOCKS = "\n".join(re.findall(r"^```sh\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)).replace("\\\n", " ")
COMMANDS = re.findall(r"python deploy/sagemaker/deploy\.py (.*)", BLOCKS)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_command_is_one_that_it_takes(command: str) -> None:
    words = shlex.split(re.sub(r">\s*\S+", "", command), comments=True)
    assert _parser().parse_args(words).run


def test_every_command_is_shown() -> None:
    assert {command.split()[0] for command in COMMANDS} == {"build", "deploy", "invoke", "status", "teardown", "policy"}
    assert {mode for mode in LIMITS if f"--mode {mode}" in BLOCKS} == LIMITS.keys()


def test_the_limits_are_the_codes() -> None:
    assert f"{LIMITS['realtime'].payload_bytes:,} bytes" in PAGE and f"{LIMITS['realtime'].seconds} s" in PAGE
    assert (LIMITS["async"].payload_bytes, LIMITS["batch"].payload_bytes, SERVER_BYTES) == (10**9, 10**8, 150 * 2**20)
    assert "1 GB; this server's own limit is 150 MiB" in PAGE and "100 MB a recording" in PAGE
    assert f"At most {LIMITS['realtime'].content_type} characters, {LIMITS['batch'].content_type} in a batch" in PAGE
    assert all(limits.source in PAGE for limits in LIMITS.values())


@pytest.mark.parametrize(
    ("minutes", "bits", "limit"),
    [(6.5, 128_000, "realtime"), (35, 24_000, "realtime"), (1.7 * 60, 128_000, "batch")],
)
def test_the_lengths_fit_the_limits(minutes: float, bits: int, limit: Mode) -> None:
    assert minutes == pytest.approx(LIMITS[limit].payload_bytes * 8 / bits / 60, rel=0.03)
