"""The contenders of bench/serve.py: servers over HTTP, and libraries, each in its own process.

All contenders get the same weights, threads and recordings, decode the same number of tokens from every window, and count the
tokens they decoded. A library gets recordings one by one, or in batches where its API supports them.
"""

from __future__ import annotations

import io
import json
import math
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import psutil
import soundfile

from whispercore import checkpoints
from whispercore.api import request
from whispercore.api.fields import RAW_FIELD
from whispercore.checkpoints.compute_types import precision
from whispercore.settings import Settings
from whispercore.types import SAMPLE_RATE, Samples

from . import ggml
from .load import LoadError, Reply, Work, closed_loop
from .server import Server, ours, plain
from .work import HEADERS, checkpoint, environment, in_process

OURS, CORE, PLAIN = "this server", "core", "plain handler"
WINDOW_SECONDS = 30
BATCH = 16
"""The largest batch of recordings or windows for a library: the usual setting for transformers."""
START_SECONDS = 600.0
LONG_HEADERS = {name: value for name, value in HEADERS.items() if "Vad" not in name} | {"Content-Type": "audio/mpeg"}
"""For a long recording, which every contender cuts by its own defaults: ours and faster-whisper's batched mode use
VAD."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What all contenders have in common."""

    size: str
    device: str
    threads: int
    tokens: int

    @property
    def checkpoint(self) -> Path:
        """The weights in OpenAI's format, from which every other format is converted."""
        return checkpoint(self.size)

    @property
    def variables(self) -> dict[str, str]:
        """Our settings as environment variables. The checkpoint is converted for them."""
        variables = {"WHISPER_DEVICE": self.device, "WHISPER_THREADS": str(self.threads)}
        return environment(self.size, tokens=self.tokens) | variables

    @property
    def ct2_folder(self) -> Path:
        """The checkpoint in CTranslate2's format: int8 on a CPU, fp16 on a GPU."""
        settings = Settings.load(environ=self.variables | {"WHISPER_ENGINE": "ct2"})
        checkpoints.prepare(settings)
        return checkpoints.converted_folder(settings, self.checkpoint, precision(settings, self.device))


class Contender(Protocol):
    """A running contender."""

    name: str

    def load(self, recordings: Sequence[bytes], together: int) -> Work:
        """Transcribe all recordings, `together` at a time.

        Raises RuntimeError when another number of tokens was decoded.
        """
        ...

    def processor_seconds(self) -> float:
        """Processor time that its processes have used so far."""
        ...


class Served:
    """A TorchServe with our model or the plain handler's."""

    def __init__(self, name: str, server: Server, tokens: int) -> None:
        self.name, self.server, self._tokens = name, server, tokens

    def load(self, recordings: Sequence[bytes], together: int) -> Work:
        """A closed loop over HTTP. The replies are checked."""
        load = closed_loop(self.server.port, self.server.model, recordings, self.headers(recordings[0]), concurrency=together)
        return Work(load.wall, tuple(reply.seconds for reply in load.replies), self.windows(load.replies))

    def processor_seconds(self) -> float:
        """Processor time of TorchServe and its worker so far."""
        return self.server.processor_seconds()

    def headers(self, recording: bytes) -> dict[str, str]:
        """The request headers for a clip or a long recording."""
        return (HEADERS if recording.startswith(b"fLaC") else LONG_HEADERS) | {"X-Whisper-Response-Format": "verbose_json"}

    def windows(self, replies: Sequence[Reply]) -> int:
        """The number of windows in the replies. Raises RuntimeError when another number of tokens was decoded."""
        return sum(windows_of(self.server.model, reply, self._tokens) for reply in replies)


def windows_of(model: str, reply: Reply, tokens: int) -> int:
    """The number of windows in a reply. Raises RuntimeError when another number of tokens was decoded.

    The plain handler's reply has the counts. Our reply leaves timestamps out of a segment's tokens, so it only bounds the number of
    windows from below; `core` counts all tokens of the same work in process.
    """
    content = json.loads(reply.body)
    if model == "plain":
        counts = content["tokens"]
        right, windows = bool(counts) and set(counts) == {tokens}, len(counts)
    else:
        count, seconds = sum(len(segment["tokens"]) for segment in content["segments"]), content["duration"]
        right = count > tokens // 8 * max(1, seconds // 60) and (seconds > WINDOW_SECONDS or count <= tokens)
        windows = math.ceil(count / tokens)
    if not right:
        raise RuntimeError(f"{model} did not decode {tokens} tokens of every window: {reply.body[:300]!r}")
    return windows


class Alone:
    """A library in its own process, which starts at once and is controlled through a pipe."""

    def __init__(self, name: str, setup: Setup) -> None:
        context = multiprocessing.get_context("spawn")
        self.name = name
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve_pipe, args=(theirs, name, setup), daemon=True)
        self._process.start()
        theirs.close()

    def wait_until_ready(self) -> None:
        """Raises LoadError with the reason when the library cannot be loaded."""
        self._answer()

    def load(self, recordings: Sequence[bytes], together: int) -> Work:
        """Transcribe in the library's process. The time does not include the pipe."""
        self._pipe.send((recordings, together))
        work: Work = self._answer()
        return work

    def processor_seconds(self) -> float:
        """Processor time of the process so far."""
        used = psutil.Process(self._process.pid).cpu_times()
        return float(used.user + used.system)

    def stop(self) -> None:
        """End the process."""
        with suppress(OSError):
            self._pipe.send(None)
        self._process.join(20)
        self._process.kill()

    def _answer(self) -> Any:
        try:
            if not self._pipe.poll(START_SECONDS):
                raise LoadError(f"{self.name} does not answer")
            answer = self._pipe.recv()
        except EOFError:
            raise LoadError(f"{self.name} died") from None
        if isinstance(answer, Exception):
            raise LoadError(f"{self.name}: {answer}") from None
        return answer


Run = Callable[[Sequence[bytes], int], "tuple[Sequence[float], Sequence[int]]"]
"""Transcribe recordings, a number of them at once → seconds of each recording, and the token count of every window."""


def _serve_pipe(pipe: Pipe, name: str, setup: Setup) -> None:
    """The main loop of a library's process: load the library, then transcribe recordings from the pipe until it sends
    None."""
    os.environ["OMP_NUM_THREADS"] = str(setup.threads)
    try:
        with LIBRARIES[name](setup) as run:
            pipe.send(None)
            while (request := pipe.recv()) is not None:
                recordings, together = request
                pipe.send(_timed(run, recordings, together, setup.tokens))
    except EOFError:
        pass
    except Exception as error:
        pipe.send(RuntimeError(f"{type(error).__name__}: {error}"))


def _timed(run: Run, recordings: Sequence[bytes], together: int, tokens: int) -> Work:
    began = time.perf_counter()
    seconds, counts = run(recordings, together)
    wall = time.perf_counter() - began
    if not counts or set(counts) != {tokens}:
        raise RuntimeError(f"{tokens} tokens were to be decoded from every window; it was {sorted(set(counts))}")
    return Work(wall, tuple(seconds), len(counts))


def read(recording: bytes) -> Samples:
    """The samples of a 16 kHz mono recording, read in memory.

    This is faster than starting ffmpeg, as some libraries do.
    """
    samples: Samples = soundfile.read(io.BytesIO(recording), dtype="float32")[0]
    return samples


def one_by_one(transcribe: Callable[[bytes], Sequence[int]], workers: int = 1) -> Run:
    """The run of a library that takes one recording at a time, or one per worker thread."""

    def timed(recording: bytes) -> tuple[float, Sequence[int]]:
        began, counts = time.perf_counter(), transcribe(recording)
        return time.perf_counter() - began, counts

    def run(recordings: Sequence[bytes], together: int) -> tuple[Sequence[float], Sequence[int]]:
        with ThreadPoolExecutor(min(workers, together)) as pool:
            done = list(pool.map(timed, recordings))
        return [seconds for seconds, _ in done], [count for _, counts in done for count in counts]

    return run


def in_batches(transcribe: Callable[[Sequence[bytes]], Sequence[int]]) -> Run:
    """The run of a library that takes a batch of recordings."""

    def run(recordings: Sequence[bytes], together: int) -> tuple[Sequence[float], Sequence[int]]:
        seconds: list[float] = []
        counts: list[int] = []
        for first in range(0, len(recordings), together):
            batch, began = recordings[first : first + together], time.perf_counter()
            counts += transcribe(batch)
            seconds += [time.perf_counter() - began] * len(batch)
        return seconds, counts

    return run


@contextmanager
def core(setup: Setup) -> Iterator[Run]:
    """Our core in this process, without the server: as many recordings are open as the server would have requests."""
    transcriber, engine = in_process(setup.variables)
    with transcriber:

        def run(recordings: Sequence[bytes], together: int) -> tuple[Sequence[float], Sequence[int]]:
            engine.tokens.clear()
            with ThreadPoolExecutor(together) as clients:
                return list(clients.map(transcribe, recordings)), list(engine.tokens)

        def transcribe(recording: bytes) -> float:
            headers = HEADERS if recording.startswith(b"fLaC") else LONG_HEADERS
            began = time.perf_counter()
            transcriber.submit(recording, request.parse({RAW_FIELD: b"-"}, headers).options).result()
            return time.perf_counter() - began

        yield run


@contextmanager
def openai_whisper(setup: Setup) -> Iterator[Run]:
    """whisper.transcribe, float32 on a CPU and fp16 on a GPU."""
    import torch
    import whisper

    from .plain.plain_handler import options

    torch.set_num_threads(setup.threads)
    model = whisper.load_model(str(setup.checkpoint), device=setup.device)
    decode, counts = model.decode, list[int]()

    def counted(mel: Any, decoding: Any) -> Any:
        result = decode(mel, decoding)
        counts.append(len(result.tokens))
        return result

    model.decode = counted
    arguments = options(model, setup.tokens)

    def transcribe(recording: bytes) -> Sequence[int]:
        counts.clear()
        whisper.transcribe(model, read(recording), **arguments)
        return list(counts)

    yield one_by_one(transcribe)


def _faster_whisper(setup: Setup, workers: int = 1) -> tuple[Any, dict[str, Any]]:
    """The model, and the arguments that make it decode `tokens` tokens of every window, once."""
    from faster_whisper import WhisperModel

    threads, precision = max(1, setup.threads // workers), {"cpu": "int8", "cuda": "float16"}[setup.device]
    folder = str(setup.ct2_folder)
    model = WhisperModel(folder, device=setup.device, compute_type=precision, cpu_threads=threads, num_workers=workers)
    tokenizer = model.hf_tokenizer
    never = [-1, *(tokenizer.token_to_id(f"<|{name}|>") for name in ("endoftext", "0.00"))]
    never += range(never[-1] + 1, tokenizer.get_vocab_size())
    options: dict[str, Any] = {"language": "en", "beam_size": 1, "temperature": 0.0, "suppress_tokens": never}
    # CTranslate2 samples half of max_length, which includes a prompt of 4 tokens
    options |= {"max_new_tokens": 2 * setup.tokens - 4}
    options |= {"without_timestamps": True, "condition_on_previous_text": False, "no_speech_threshold": None}
    return model, options | {"log_prob_threshold": None, "compression_ratio_threshold": None}


@contextmanager
def faster_whisper(setup: Setup) -> Iterator[Run]:
    """faster-whisper as in its README: one window after the other, with all threads."""
    model, options = _faster_whisper(setup)
    yield one_by_one(lambda recording: [len(segment.tokens) for segment in model.transcribe(io.BytesIO(recording), **options)[0]])


@contextmanager
def faster_whisper_workers(setup: Setup) -> Iterator[Run]:
    """faster-whisper with one worker per core, each fed by a thread: its fastest mode for several recordings on a
    CPU."""
    model, options = _faster_whisper(setup, workers=setup.threads)
    transcribe = lambda recording: [len(segment.tokens) for segment in model.transcribe(io.BytesIO(recording), **options)[0]]  # noqa: E731
    yield one_by_one(transcribe, workers=setup.threads)


@contextmanager
def faster_whisper_batched(setup: Setup) -> Iterator[Run]:
    """faster-whisper's batched pipeline: clips are concatenated, one window each; a long recording is cut by its own
    VAD."""
    from faster_whisper import BatchedInferencePipeline, decode_audio

    model, options = _faster_whisper(setup)
    pipeline = BatchedInferencePipeline(model)

    def transcribe(recordings: Sequence[bytes]) -> Sequence[int]:
        samples = [decode_audio(io.BytesIO(recording)) for recording in recordings]
        ends = np.cumsum([len(clip) for clip in samples]) / SAMPLE_RATE
        clips = [{"start": end - len(clip) / SAMPLE_RATE, "end": end} for end, clip in zip(ends.tolist(), samples, strict=True)]
        is_long = ends[-1] > WINDOW_SECONDS and len(samples) == 1
        cut = {"vad_filter": True} if is_long else {"clip_timestamps": clips}
        segments = pipeline.transcribe(np.concatenate(samples), batch_size=BATCH, **cut, **options)[0]
        return [len(segment.tokens) for segment in segments]

    yield in_batches(transcribe)


@contextmanager
def transformers(setup: Setup) -> Iterator[Run]:
    """transformers' speech recognition pipeline with batches of 16.

    A long recording is cut into chunks of 30 s without overlap.
    """
    from .huggingface import pipeline

    recognise, counts = pipeline(setup.checkpoint, setup.ct2_folder, setup.device, setup.threads, setup.tokens)

    def transcribe(recordings: Sequence[bytes]) -> Sequence[int]:
        counts.clear()
        inputs = [{"raw": read(recording), "sampling_rate": SAMPLE_RATE} for recording in recordings]
        recognise(inputs, batch_size=BATCH)
        return list(counts)

    yield in_batches(transcribe)


@contextmanager
def whisper_cpp(setup: Setup) -> Iterator[Run]:
    """whisper.cpp by pywhispercpp, with q8_0 weights. The package supports CPUs only."""
    binding, models = import_module("_pywhispercpp"), import_module("pywhispercpp.model")
    if setup.device != "cpu":
        raise RuntimeError("pywhispercpp's wheel computes on CPUs only")
    path = ggml.converted(setup.checkpoint)
    options = {"max_tokens": setup.tokens - 1, "no_timestamps": True, "single_segment": True, "temperature_inc": 0.0, "no_context": True}
    thresholds = {"no_speech_thold": 1.0, "entropy_thold": 0.0, "logprob_thold": -1e9}
    model: Any = models.Model(str(path), redirect_whispercpp_logs_to=None, n_threads=setup.threads, language="en", print_progress=False)

    def transcribe(recording: bytes) -> Sequence[int]:
        model.transcribe(read(recording), **options, **thresholds)
        segments = range(binding.whisper_full_n_segments(model._ctx))
        return [binding.whisper_full_n_tokens(model._ctx, segment) for segment in segments]

    yield one_by_one(transcribe)


LIBRARIES: dict[str, Callable[[Setup], AbstractContextManager[Run]]] = {
    CORE: core,
    "openai-whisper": openai_whisper,
    "faster-whisper": faster_whisper,
    "faster-whisper, a worker a core": faster_whisper_workers,
    "faster-whisper batched": faster_whisper_batched,
    "transformers": transformers,
    "whisper.cpp": whisper_cpp,
}
NAMES = (OURS, CORE, PLAIN, *(name for name in LIBRARIES if name != CORE))
BATCHING = (OURS, CORE, "faster-whisper, a worker a core", "faster-whisper batched", "transformers")
"""The contenders whose throughput depends on the number of recordings at once."""
SEVERAL_ONLY = ("faster-whisper, a worker a core",)
"""The contenders that use one core per recording, and are not measured on one long file."""


@contextmanager
def served(name: str, setup: Setup) -> Iterator[Served]:
    """Our server or the plain handler's, started; `server.wait_until_ready` waits for it."""
    server = ours(setup.variables) if name == OURS else plain(setup.checkpoint, setup.tokens, setup.threads)
    with server:
        yield Served(name, server, setup.tokens)
