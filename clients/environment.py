"""Runs a client in serve.sh's own Python environment, which has every package that the clients need. Works with Python 3.9 or later.

Each client begins with `import environment` and `environment.enter()`, before it imports anything that is not in Python itself.
"""

import os
import sys
from pathlib import Path
from typing import Optional

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent
STAMP = ".requirements"
"""A file that server/setup.sh leaves in an environment when it has all packages."""
_ENTERED = "CLIENT_ENVIRONMENT"
"""Set for the time between two programs: one that was started here does not start a third."""
_HOW = "run ./serve.sh --setup once; or, in a virtual environment: pip install -r"


def enter() -> None:
    """Start the running client again in serve.sh's environment when there is one; otherwise go on with this Python.

    A package that is then missing ends the program with one line that says how to get it. Nothing happens when the caller was
    imported by another program, as the tests do.
    """
    client = _client()
    if client is None:
        return
    python = None if os.environ.pop(_ENTERED, "") else _python()
    if python is not None:
        os.environ[_ENTERED] = "1"
        os.execv(python, [python, str(client), *sys.argv[1:]])
    if sys.version_info < (3, 10):
        sys.exit(f"error: {client.name} needs Python 3.10 or later, this is {sys.version.split()[0]}; or run ./serve.sh --setup once")
    sys.excepthook = _excepthook


def _client() -> Optional[Path]:
    """The client that was started as a program, if one was."""
    program = getattr(sys.modules["__main__"], "__file__", None)
    path = Path(program).resolve() if program else ROOT
    return path if path.parent == FOLDER else None


def _python() -> Optional[str]:
    """The Python of serve.sh's environment, unless it is the one that runs."""
    for folder in _environments():
        python = folder / "bin" / "python"
        if os.access(python, os.X_OK):
            return None if Path(sys.prefix).resolve() == folder.resolve() else str(python)
    return None


def _environments() -> "list[Path]":
    """Where serve.sh keeps its environment, first found first: see choose_state_dir in server/setup.sh."""
    own = os.environ.get("WHISPER_VENV")
    if own:
        return [Path(own).absolute()]
    state = os.environ.get("WHISPER_STATE_DIR")
    home = Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser()
    states = [Path(state)] if state else [ROOT / "build", home / "whisper-torchserve"]
    return [folder.absolute() / "venv" for folder in states if (folder / "venv" / STAMP).is_file()]


def _excepthook(kind: "type[BaseException]", error: BaseException, traceback: object) -> None:
    """One line for a missing package, Python's own report for anything else."""
    client = _client()
    if not isinstance(error, ModuleNotFoundError) or client is None:
        sys.__excepthook__(kind, error, traceback)  # type: ignore[arg-type]
        return
    file = "requirements.txt" if client.name == "convert_model.py" else "clients/requirements.txt"
    print(f"error: {client.name} needs the package {error.name}: {_HOW} {file}", file=sys.stderr)
