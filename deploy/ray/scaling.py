"""Measures how a batch by Ray scales from one actor to several on one machine, and writes scaling.json.

python deploy/ray/scaling.py [--actors 1,2,4,8] [--recordings 64] [--seconds 4.0]

The engine has no weights and only waits: a fixed time for each batch of windows. So one machine can hold as many actors
as the measurement needs, and what is measured is everything but the model: Ray, reading, batching, joining, writing.
All actors are loaded before the clock starts, because loading depends on the cores of the machine.
"""

from __future__ import annotations

import argparse
import functools
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import soundfile

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "src"), str(ROOT / "clients")]

import actors  # noqa: E402
import ray  # noqa: E402
from batch import Batch  # noqa: E402
from manifest import Manifest  # noqa: E402
from progress import BatchProgress  # noqa: E402
from storage import Folder, find_recordings  # noqa: E402

from bench.results import provenance, save  # noqa: E402
from whispercore.api.request import parse  # noqa: E402
from whispercore.engines.fake import FakeEngine  # noqa: E402
from whispercore.serving.transcriber import Transcriber  # noqa: E402
from whispercore.types import SAMPLE_RATE  # noqa: E402

BATCH = 4
"""Windows that the engine takes at once."""
RECORDING_SECONDS = 25.0
"""Each recording is one window."""


@dataclass(frozen=True, slots=True)
class Row:
    """A run. `seconds`: from the moment at which all actors are loaded. `ideal`: what the engines alone take."""

    actors: int
    seconds: float
    ideal: float

    @property
    def efficiency(self) -> float:
        """The share of the time in which the engines work."""
        return self.ideal / self.seconds


def load(delay: float, gate: str, count: int) -> Transcriber:
    """The transcriber of an actor, when all `count` actors have come to the gate."""
    transcriber = Transcriber(engine=FakeEngine(max_batch=BATCH, delay=delay))
    folder = Path(gate)
    (folder / f"{time.monotonic_ns()}").touch()
    while len(list(folder.iterdir())) < count:
        time.sleep(0.01)
    return transcriber


def opened_at(gate: Path) -> float:
    """The time at which the last actor came to the gate."""
    return max(path.stat().st_mtime for path in gate.iterdir())


def measure(talks: Path, count: int, delay: float) -> Row:
    """A run with `count` actors."""
    with tempfile.TemporaryDirectory() as gate, tempfile.TemporaryDirectory() as out:
        cluster = actors.Cluster(actors=count, cpus=1, load=functools.partial(load, delay, gate, count))
        request = parse({"body": b"-", "response_format": "text", "vad_filter": "false"}, {})
        recordings = find_recordings(str(talks))
        place = Folder(Path(out))
        batch = Batch(place, Manifest(place), {"text": request}, "", keep_truncated=False)
        runner = functools.partial(actors.run_by_ray, cluster, {}, request.options, 1200.0)
        with BatchProgress(len(recordings), 0, shown=False) as progress:
            batch.run(runner, recordings, 1, progress)
        ended = time.time()
        assert len(batch.entries) == len(recordings) and all(entry.status == "done" for entry in batch.entries)
        return Row(count, round(ended - opened_at(Path(gate)), 2), round(len(recordings) / BATCH / count * delay, 2))


def main() -> int:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--actors", default="1,2,4,8")
    parser.add_argument("--recordings", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=4.0, help="what the engine takes for a batch (default: 4)")
    arguments = parser.parse_args()
    origin = provenance()
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as talks:
        for number in range(arguments.recordings):
            noise = rng.uniform(-0.5, 0.5, round(RECORDING_SECONDS * SAMPLE_RATE))
            soundfile.write(Path(talks) / f"{number}.wav", noise, SAMPLE_RATE, subtype="PCM_16")
        rows = []
        for count in map(int, arguments.actors.split(",")):
            rows.append(measure(Path(talks), count, arguments.seconds))
            print(f"{count} actors: {rows[-1].seconds} s, ideal {rows[-1].ideal} s, {rows[-1].efficiency:.0%}", flush=True)
        without_cost = measure(Path(talks), 2, 0.0)
    settings = {
        "recordings": arguments.recordings,
        "recording_seconds": RECORDING_SECONDS,
        "batch": BATCH,
        "batch_seconds": arguments.seconds,
        "engine": "fake, waits",
        "ray": ray.__version__,
    }
    result = {
        "rows": [{**asdict(row), "efficiency": round(row.efficiency, 3)} for row in rows],
        "recordings_per_second_without_an_engine": round(arguments.recordings / without_cost.seconds, 1),
    }
    print(save(Path(__file__).parent, "scaling", origin, settings, result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
