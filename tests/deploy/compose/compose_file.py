"""deploy/compose/compose.yaml, read as Compose reads it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

import yaml

from tests.deploy.binaries import ROOT

COMPOSE = ROOT / "deploy" / "compose"
_VARIABLE = re.compile(r"\$\{(\w+):-([^}]*)\}")


def read(name: str = "compose.yaml", environ: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """A file of deploy/compose, its variables replaced by their values or defaults."""
    text = (COMPOSE / name).read_text()
    content: dict[str, Any] = yaml.safe_load(_VARIABLE.sub(lambda found: environ.get(found[1]) or found[2], text))
    return content


def variables(name: str) -> set[str]:
    """The variables that a file of deploy/compose takes from the environment."""
    return {found[1] for found in _VARIABLE.finditer((COMPOSE / name).read_text())}
