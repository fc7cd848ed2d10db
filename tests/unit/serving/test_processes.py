"""Reader processes: what they read is what this process would read, and what ends one of them costs only its own recording."""

from __future__ import annotations

import gc
import io
import os
import pickle
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import soundfile

from tests.unit.doubles import PATIENCE, WHOLE, wav
from whispercore.audio import open_recording, reading
from whispercore.audio.packing import PackedWindow
from whispercore.audio.reading import OpenRecording, Reading
from whispercore.audio.recording import Recording, read_samples
from whispercore.audio.source import MappedFile, descriptor_of
from whispercore.audio.survey import Survey
from whispercore.audio.threads import AudioThreads, GivenUp
from whispercore.audio.transport import SharedMemory
from whispercore.engines.fake import FakeEngine
from whispercore.errors import Cancelled, InvalidRequest, UnreadableAudio, WhisperError
from whispercore.options import Options
from whispercore.serving import transcriber as front
from whispercore.serving.processes import Processes, ReaderProcess
from whispercore.serving.remote import RemoteRecording
from whispercore.serving.transcriber import Transcriber
from whispercore.settings import Settings
from whispercore.types import SAMPLE_RATE

ROOT = Path(__file__).parents[3]
SAMPLES = sorted(path for path in (ROOT / "samples").iterdir() if path.suffix in (".flac", ".mp3", ".ogg", ".wav"))
SHORT = SAMPLES[0].read_bytes()
READINGS = {
    "chunked": reading.windows(Options()),
    "multilingual": reading.windows(Options(multilingual=True)),
    "without vad": reading.windows(WHOLE),
    "clips": reading.windows(Options(clip_timestamps=(0.5, 1.25, 1.5, 2.0))),
    "survey": reading.survey(Options(), 80),
    "blocks": reading.blocks,
}


@dataclass
class Lane:
    """One process after the other, as `readers.Lane` has them."""

    processes: Processes
    now: ReaderProcess | None = None

    def process(self) -> ReaderProcess | None:
        self.now = self.processes.ready(self.now)
        return self.now

    def open(self, source: Any = SHORT, *, is_cancelled: Callable[[], bool] = lambda: False, **options: Any) -> RemoteRecording:
        def descriptor() -> int:
            made = descriptor_of(source)
            assert made is not None
            return made

        options = {"max_seconds": 1e4, "seconds": self.processes.seconds} | options
        return RemoteRecording(self.process, descriptor, is_cancelled, **options)


@pytest.fixture
def lane() -> Iterator[Lane]:
    processes = Processes(PATIENCE)
    yield Lane(processes)
    processes.close()


@pytest.fixture(scope="module")
def shared_lane() -> Iterator[Lane]:
    """For tests that leave the process alive."""
    processes = Processes(PATIENCE)
    yield Lane(processes)
    processes.close()


def crashing(recording: Recording, threads: AudioThreads | None) -> Iterator[int]:
    yield 1
    os.kill(os.getpid(), signal.SIGSEGV)


def crashing_ahead(recording: Recording, threads: AudioThreads | None) -> Iterator[int]:
    """As when FFmpeg crashes on the block that is decoded while the reply is on its way."""

    def crash() -> None:
        time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGSEGV)

    assert threads
    recording._decoding = threads.decoding.submit(crash)
    yield 1
    yield 2


def hanging(recording: Recording, threads: AudioThreads | None) -> Iterator[int]:
    yield 1
    time.sleep(10 * PATIENCE)


def devouring(recording: Recording, threads: AudioThreads | None) -> Iterator[int]:
    yield len(bytearray(64 << 30))


def waiting(recording: Recording, threads: AudioThreads | None) -> Iterator[int]:
    """Reads until it is cancelled."""
    while True:
        recording._file.budget.check()
        time.sleep(0.01)
    yield 0


def killing_itself_once(path: str, recording: Recording, threads: AudioThreads | None) -> Iterator[int]:
    """As when the kernel ends a process because the machine has no memory left."""
    yield 1
    if not Path(path).exists():
        Path(path).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    yield 2


def plain(item: Any) -> Any:
    """An item as values that `==` compares."""
    if isinstance(item, PackedWindow):
        return [(chunk.samples.tobytes(), chunk.start, chunk.clip_start, plain(chunk.voiced)) for chunk in item.chunks]
    return (item.dtype, item.tobytes()) if isinstance(item, np.ndarray) else item


def outcome(recording: OpenRecording, of: Reading[Any]) -> Any:
    items = [plain(item) for item in recording.read(of)]
    return items, recording.duration, list(recording.warnings), recording.tracks, recording.channels, recording.expected_duration


@pytest.mark.parametrize("name", READINGS)
@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.name)
def test_the_same_items_as_in_this_process(shared_lane: Lane, path: Path, name: str) -> None:
    for source in (path, path.read_bytes(), MappedFile.view(path)):
        remote = shared_lane.open(source)
        with open_recording(path) as local:
            assert outcome(remote, READINGS[name]) == outcome(local, READINGS[name])
        remote.close()


def test_channels_are_read_apart_and_long_recordings_in_steps(shared_lane: Lane) -> None:
    file = io.BytesIO()
    soundfile.write(file, np.random.default_rng(0).uniform(-0.5, 0.5, (32_000, 2)), 16_000, format="FLAC")
    for source, channel in ((file.getvalue(), 0), (file.getvalue(), 1), (wav(95), None)):
        remote = shared_lane.open(source, channel=channel)
        with open_recording(source, channel=channel) as local:
            assert outcome(remote, READINGS["without vad"]) == outcome(local, READINGS["without vad"])
        remote.close()


@pytest.mark.parametrize(
    "source",
    [b"", b"no audio" * 1000, SHORT[:200], SHORT[: len(SHORT) // 2], bytes(100_000)],
    ids=["empty", "no audio", "cut off in the header", "cut off", "zeros"],
)
def test_the_same_errors_and_warnings_as_in_this_process(shared_lane: Lane, source: bytes) -> None:
    def ended(opened: Callable[[], OpenRecording]) -> Any:
        try:
            return outcome(opened(), READINGS["chunked"])
        except WhisperError as error:
            return type(error), error.message, error.code, error.param

    assert ended(lambda: shared_lane.open(source)) == ended(lambda: open_recording(source))


def long_mp3() -> bytes:
    """Eight minutes of the bundled sentences."""
    # here: a reader process that gets a function of this module imports the module, too, within the test's deadline
    from tests.unit.audio.test_recording import encode

    sentences = np.concatenate([read_samples(path) for path in SAMPLES])
    return encode(np.resize(sentences, 480 * SAMPLE_RATE), "mp3", "libmp3lame")


@pytest.mark.slow
def test_several_processes_decode_the_items_of_one(lane: Lane) -> None:
    data = long_mp3()
    for of in (READINGS["chunked"], READINGS["survey"]):
        assert outcome(lane.open(data, processes=3), of) == outcome(lane.open(data), of)


@pytest.mark.slow
def test_the_copies_of_a_process_that_ends_end_with_it(lane: Lane) -> None:
    items = lane.open(long_mp3(), processes=3).read(reading.windows(Options()))
    next(items)
    assert lane.now
    copies = psutil.Process(lane.now.pid).children()
    assert len(copies) == 3
    os.kill(lane.now.pid, signal.SIGKILL)
    assert psutil.wait_procs(copies, timeout=PATIENCE)[1] == []
    assert len(list(items)) >= 15  # another process went on


def test_limits_are_those_of_the_request(shared_lane: Lane) -> None:
    for options in ({"max_seconds": 1.0}, {"channel": 7}, {"track": "9"}):
        with pytest.raises(WhisperError) as here:
            list(open_recording(SHORT, **options).blocks())
        with pytest.raises(type(here.value)) as there:
            list(shared_lane.open(SHORT, **options).read(reading.blocks))
        assert str(there.value) == str(here.value)


def test_a_crash_ends_only_the_recording_that_was_being_read(lane: Lane) -> None:
    expected = [plain(item) for item in open_recording(wav(95)).read(READINGS["without vad"])]
    beside, victim = lane.open(wav(95)), lane.open()
    items, crash = beside.read(READINGS["without vad"]), victim.read(crashing)
    begun = [plain(next(items)), plain(next(items))]
    assert next(crash) == 1
    with pytest.raises(UnreadableAudio, match="makes FFmpeg crash"):
        next(crash)
    first = lane.now
    assert begun + [plain(item) for item in items] == expected
    assert lane.now is not first, "in another process"


def test_a_crash_while_it_decodes_ahead_ends_no_other_recording(lane: Lane) -> None:
    beside, victim = lane.open(wav(95)), lane.open()
    ahead = victim.read(crashing_ahead)
    assert next(ahead) == 1
    assert sum(len(block) for block in beside.read(reading.blocks)) == 95 * 16_000
    with pytest.raises(UnreadableAudio, match="makes FFmpeg crash"):
        next(ahead)


def test_a_decoder_that_hangs_is_ended_at_the_deadline(lane: Lane) -> None:
    beside, victim = lane.open(wav(40)), lane.open(seconds=0.3)
    items, hang = beside.read(READINGS["without vad"]), victim.read(hanging)
    next(items)
    assert next(hang) == 1 and lane.now
    with pytest.raises(GivenUp, match=r"takes more than 0.3 s"):
        next(hang)
    assert not lane.now.alive
    assert len(list(items)) > 0


def test_a_recording_that_needs_too_much_memory_is_refused(lane: Lane) -> None:
    with pytest.raises(UnreadableAudio, match="more memory than is allowed"):
        list(lane.open().read(devouring))
    assert outcome(lane.open(), reading.blocks)[0]


def test_a_process_that_is_killed_from_outside_costs_nothing(lane: Lane, tmp_path: Path) -> None:
    assert list(lane.open().read(partial(killing_itself_once, str(tmp_path / "killed")))) == [1, 2]


def test_reading_ends_when_nothing_waits_for_it(lane: Lane) -> None:
    gone = False
    items = lane.open(is_cancelled=lambda: gone).read(waiting)
    gone = True
    process = lane.now
    with pytest.raises(Cancelled):
        next(items)
    assert outcome(lane.open(), reading.blocks)[0] and lane.now is process


def test_readers_import_no_engine(lane: Lane) -> None:
    lane.open()
    assert lane.now
    maps = Path(f"/proc/{lane.now.pid}/maps").read_text()
    assert "soxr" in maps and "onnxruntime" in maps
    assert not any(library in maps for library in ("torch", "ctranslate2", "jax"))


def test_no_descriptor_is_lost(shared_lane: Lane) -> None:
    def count() -> list[int]:
        assert shared_lane.now
        return [len(os.listdir(f"/proc/{pid}/fd")) for pid in (os.getpid(), shared_lane.now.pid)]  # noqa: PTH208

    gc.collect()  # frees the files that earlier tests left
    counts = []
    for number in range(200):
        recording = shared_lane.open(SAMPLES[number % len(SAMPLES)] if number % 2 else SHORT)
        next(recording.read(reading.blocks))
        recording.close()
        if number % 100 == 99:
            last = shared_lane.open()
            outcome(last, reading.blocks)  # before that the closed ones have been closed
            counts.append(count())
            last.close()
    assert counts[0] == counts[1]


def test_arrays_of_any_size_pass_through_shared_memory() -> None:
    ours = SharedMemory(os.memfd_create("test"))
    theirs = SharedMemory(os.dup(ours.descriptor))
    for size in (0, 1, 100, 5_000_000, 3):
        value = {"a": np.arange(size, dtype=np.float32), "b": [np.ones((2, size), bool), "text"], "c": np.arange(9)[::2]}
        back = ours.unpacked(theirs.packed(value))
        assert pickle.dumps(back) == pickle.dumps(value) and back["a"].flags.writeable
    theirs.working_on, ours.cancelled = 7, 9
    assert (ours.working_on, theirs.cancelled) == (7, 9)
    theirs.close()
    ours.close()


def test_killed_processes_change_no_transcript() -> None:
    uploads = [wav(seconds, seed) for seed, seconds in enumerate((200, 150, 95, 40, 3, 2))]
    options = [WHOLE, Options(vad_filter=False, strategy="sequential")]
    gc.collect()  # frees the files that earlier tests left
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    with Transcriber(Settings(readers=2), engine=FakeEngine()) as transcriber:
        expected = [transcriber.submit(upload, option).result(PATIENCE) for upload in uploads for option in options]
        jobs = [transcriber.submit(upload, option) for upload in uploads for option in options]
        for lane in transcriber._readers._lanes:
            while not lane.jobs:
                time.sleep(0.001)
            assert lane._process
            os.kill(lane._process.pid, signal.SIGKILL)
        assert [job.result(PATIENCE) for job in jobs] == expected
        pids = [lane._process.pid for lane in transcriber._readers._lanes if lane._process]
        assert len(pids) == 2
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_where_no_process_can_be_started_recordings_are_read_here(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    with Transcriber(Settings(), engine=FakeEngine()) as transcriber:
        assert transcriber.submit(wav(40), WHOLE).result(PATIENCE).text
        assert transcriber.submit(wav(40), WHOLE).result(PATIENCE).text
    assert caplog.text.count("no other can be started") == 1


def test_a_folder_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    with Transcriber(Settings(), engine=FakeEngine()) as transcriber:
        for path in (tmp_path, tmp_path / "none.wav"):
            with pytest.raises(InvalidRequest, match="cannot be opened"):
                transcriber.submit(path, WHOLE).result(PATIENCE)


def test_a_process_imports_nothing_from_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "numpy.py").write_text("raise RuntimeError('not this one')")
    monkeypatch.chdir(tmp_path)
    processes = Processes()
    assert Lane(processes).process()
    processes.close()


def test_one_core_starts_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front, "reads_in_processes", lambda: False)
    with Transcriber(Settings(), engine=FakeEngine()) as transcriber:
        assert transcriber.submit(wav(3), WHOLE).result(PATIENCE).text
        assert not any(lane.process() for lane in transcriber._readers._lanes)


def test_a_survey_is_the_last_item() -> None:
    *before, last = open_recording(wav(95)).read(READINGS["survey"])
    assert isinstance(last, Survey) and last.frames == 9500 and set(before) == {None}
