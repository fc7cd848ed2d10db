"""A batch whose actors have an engine without weights that takes its time: a script, because Ray's workers are processes.

python paced_batch.py DELAY LINES INPUT OUTPUT …

DELAY: seconds that the engine takes for a batch of windows. LINES: 0, or the cluster has two nodes, both on this machine,
and the second is taken away when the manifest has that many lines. A recording of POISON samples ends its actor's process.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
import time
from pathlib import Path

CLIENTS = Path(__file__).resolve().parents[3] / "clients"
sys.path[:0] = [str(CLIENTS)]

import actors  # noqa: E402
import batch  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402

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


def lose_a_node(lines: int, manifest: Path) -> str:
    """The address of a cluster that will lose a node."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    node = cluster.add_node(num_cpus=2)

    def wait_and_lose() -> None:
        while not manifest.exists() or len(manifest.read_bytes().splitlines()) < lines:
            time.sleep(0.1)
        cluster.remove_node(node, allow_graceful=False)
        print("a node is taken away", flush=True)

    threading.Thread(target=wait_and_lose, daemon=True).start()
    return str(cluster.address)


if __name__ == "__main__":
    delay, lines, arguments = float(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    if lines:
        arguments += ["--ray-address", lose_a_node(lines, Path(arguments[1]) / "manifest.jsonl")]
    actors.Cluster = functools.partial(actors.Cluster, load=functools.partial(paced, delay))  # type: ignore[assignment, misc]
    sys.exit(batch.main(arguments))
