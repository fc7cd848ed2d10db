"""A batch whose actors have an engine without weights that takes its time: a script, because Ray's workers are processes.

python paced_batch.py DELAY INPUT OUTPUT …

DELAY: seconds that the engine takes for a batch of windows. A recording whose name has `poison` ends its actor's process.
"""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path

CLIENTS = Path(__file__).resolve().parents[3] / "clients"
sys.path[:0] = [str(CLIENTS)]

import actors  # noqa: E402
import batch  # noqa: E402

from whispercore.engines.fake import FakeEngine  # noqa: E402
from whispercore.serving.transcriber import Transcriber  # noqa: E402
from whispercore.types import Window  # noqa: E402

POISON = 7_777
"""A recording of this many samples ends the process that decodes it."""


def ends_the_process(window: Window) -> bool:
    if len(window.samples) == POISON:
        os._exit(3)
    return False


def paced(delay: float) -> Transcriber:
    return Transcriber(engine=FakeEngine(max_batch=4, delay=delay, fails=ends_the_process))


if __name__ == "__main__":
    actors.Cluster = functools.partial(actors.Cluster, load=functools.partial(paced, float(sys.argv[1])))  # type: ignore[assignment, misc]
    sys.exit(batch.main(sys.argv[2:]))
