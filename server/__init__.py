"""The launcher behind serve.sh: checks the configuration, fetches the model, and runs TorchServe in the foreground.

`python -m server` works in the checkout's root; serve.sh starts it from any folder.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
"""The checkout, or the image's copy of it."""

# The core's modules without heavy imports, and the catalogue of models that the launcher shares with the clients.
sys.path += [str(ROOT / "src"), str(ROOT / "clients")]
