"""OpenMP's threads spin for a short time only: on a busy machine a long one takes the core from the thread that is waited for."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.skipif(platform.system() != "Linux", reason="PyTorch and CTranslate2 have GNU's OpenMP on Linux only")
@pytest.mark.parametrize("library", ["torch", "ctranslate2"])
@pytest.mark.parametrize(("given", "spins"), [({}, "2000"), ({"GOMP_SPINCOUNT": "7"}, "7")], ids=["default", "given"])
def test_the_library_spins_as_long_as_the_environment_says(library: str, given: dict[str, str], spins: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    environment |= {"PYTHONPATH": str(ROOT / "src"), "OMP_DISPLAY_ENV": "verbose"} | given
    code = f"import whispercore, {library}"  # the library prints its settings when it is loaded
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert re.findall(r"GOMP_SPINCOUNT = '(\d+)'", ran.stderr)[-1] == spins
