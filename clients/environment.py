"""Runs a client in the Python environment of serve.sh, which has all packages that the clients need.

Python 3.9 or later.

Each client begins with `import environment` and `environment.enter()`, before it imports anything outside the standard
library.
"""

import os
import sys
from pathlib import Path
from typing import Callable, Optional

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent
MODELS = (ROOT if FOLDER.name == "clients" else Path()) / "whisper-models"
"""The default folder of checkpoints: the checkout's, or, for the installed command, one in the current folder."""
STAMP = ".requirements"
"""A file that server/setup.sh writes into an environment when all packages are installed."""
_ENTERED = "CLIENT_ENVIRONMENT"
"""An environment variable for the restarted client, which keeps it from restarting again."""
_HOW = "run ./serve.sh --setup once; or, in a virtual environment: pip install -r"

if FOLDER.name == "clients":  # a checkout, where the core need not be installed
    sys.path.append(str(ROOT / "src"))


def enter() -> None:
    """Restart the running client in serve.sh's environment if there is one; otherwise continue with this Python.

    A package that is missing then ends the program with one line that says how to install it. Does nothing when another
    program imports the client, as the tests and the command `whispercore` do.
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


def run(main: "Callable[[], int]") -> int:
    """The exit status of a client's `main`: 130 after Ctrl-C, 141 when the reader of a pipe has ended, as in `… |
    head`."""
    try:
        return main()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _client() -> Optional[Path]:
    """The client that was started as a program, or None."""
    program = getattr(sys.modules["__main__"], "__file__", None)
    path = Path(program).resolve() if program else ROOT
    return path if path.parent == FOLDER else None


def _python() -> Optional[str]:
    """The Python of serve.sh's environment; None if there is none or it is the running one."""
    for folder in _environments():
        python = folder / "bin" / "python"
        if os.access(python, os.X_OK):
            return None if Path(sys.prefix).resolve() == folder.resolve() else str(python)
    return None


def _environments() -> "list[Path]":
    """The places where serve.sh keeps its environment, in order of precedence: see choose_state_dir in server/setup.sh."""
    venv = os.environ.get("WHISPER_VENV")
    if venv:
        return [Path(venv).absolute()]
    state = os.environ.get("WHISPER_STATE_DIR")
    home = Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser()
    states = [Path(state)] if state else [ROOT / "build", home / "whisper-torchserve"]
    return [folder.absolute() / "venv" for folder in states if (folder / "venv" / STAMP).is_file()]


def _excepthook(kind: "type[BaseException]", error: BaseException, traceback: object) -> None:
    """Print one line for a missing package, and Python's traceback for any other error."""
    client = _client()
    if not isinstance(error, ModuleNotFoundError) or client is None:
        sys.__excepthook__(kind, error, traceback)  # type: ignore[arg-type]
        return
    file = "requirements.txt" if client.name == "convert_model.py" else "clients/requirements.txt"
    print(f"error: {client.name} needs the package {error.name}: {_HOW} {file}", file=sys.stderr)
