"""The parts of openai-whisper that need no PyTorch: its tokenizer and its subtitle writer.

`import whisper.tokenizer` imports the whole package first, and with it PyTorch and numba: 1.8 s, and 1 GB on the disk.
Engine ct2 needs neither, so it starts sooner, and runs where they are not installed. The two files are therefore
loaded by themselves, under names of our own, so that a later `import whisper` finds nothing half imported.
"""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

from .errors import ConfigurationError


@cache
def folder() -> Path:
    """The folder of the package. Raises ConfigurationError when openai-whisper is not installed."""
    package = importlib.util.find_spec("whisper")  # does not import it
    if package is None or package.origin is None:
        raise ConfigurationError("openai-whisper is missing; run: pip install openai-whisper")
    return Path(package.origin).parent


def _module(name: str) -> ModuleType:
    """The file NAME.py of the package as a module."""
    spec = importlib.util.spec_from_file_location(f"{__name__}_{name}", folder() / f"{name}.py")
    assert spec is not None and spec.loader is not None  # the path ends with .py
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tokenizer = _module("tokenizer")
utils = _module("utils")
