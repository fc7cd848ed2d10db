"""A Python process that is started beside this one, and imports the same modules as this one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def start(module: str, call: str, descriptors: Sequence[int], **environment: str) -> subprocess.Popen[bytes]:
    """Start a process that imports a function of a module and calls it: `call` is the expression.

    `descriptors`: the files that it keeps open. `environment`: variables that are set besides those of this process.
    Raises OSError.
    """
    # The current folder is left out: another user may have put a numpy.py there.
    path = [str(Path(__file__).resolve().parents[2]), *(folder for folder in sys.path if folder)]
    code = f"import sys; sys.path[:] = {path!r}; from {module} import {call.partition('(')[0]}; {call}"
    # NumPy reserves memory for each thread.
    variables = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"} | environment
    return subprocess.Popen(
        [sys.executable, "-c", code],
        pass_fds=descriptors,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env=os.environ | variables,
    )
