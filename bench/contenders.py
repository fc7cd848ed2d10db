"""The contenders of bench/serve.py: servers over HTTP, and libraries that each run in a process of their own.

All of them get the same weights, threads and recordings, and are made to decode the same number of tokens from every window; each
counts what it decoded. A library has no server: it takes recordings one after the other, or a batch of them where its API can.
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
from whispercore.checkpoints.conversion import precision
from whispercore.settings import Settings
from whispercore.types import SAMPLE_RATE, Samples

from . import ggml
from .load import LoadError, Reply, Work, closed_loop
from .server import Server, ours, plain
from .work import HEADERS, checkpoint, environment, in_process

OURS, CORE, PLAIN = "this server", "core", "plain handler"
WINDOW_SECONDS = 30
BATCH = 16
"""Recordings or windows that a library's batch holds at most, as transformers' users set it."""
START_SECONDS = 600.0
LONG_HEADERS = {name: value for name, value in HEADERS.items() if "Vad" not in name} | {"Content-Type": "audio/mpeg"}
"""A long recording is cut as each contender does it by itself: ours and faster-whisper's batches where nobody speaks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What is the same for all."""

    size: str
    device: str
    threads: int
    tokens: int

    @property
    def checkpoint(self) -> Path:
        """The weights in OpenAI's format, which each contender's own format is made from."""
        return checkpoint(self.size)

    @property
    def variables(self) -> dict[str, str]:
        """Our own settings, as environment variables; the checkpoint is made ready for them."""
        chosen = {"WHISPER_DEVICE": self.device, "WHISPER_THREADS": str(self.threads)}
        return environment(self.size, tokens=self.tokens) | chosen

    @property
    def ct2_folder(self) -> Path:
        """The checkpoint as CTranslate2 reads it, in its fastest faithful precision here: int8 on a CPU, fp16 on a GPU."""
        settings = Settings.load(environ=self.variables | {"WHISPER_ENGINE": "ct2"})
        checkpoints.prepare(settings)
        return checkpoints.converted_folder(settings, self.checkpoint, precision(settings, self.device))


class Contender(Protocol):
    """One of them, running. `load` sends recordings, so many at once, and says what came of it; raises RuntimeError for other work."""

    name: str

    def load(self, recordings: Sequence[bytes], together: int) -> Work:
        """Transcribe them all."""
        ...

    def processor_seconds(self) -> float:
        """What its processes have used so far."""
        ...


class Served:
    """A TorchServe with a model: ours or the plain handler's."""

    def __init__(self, name: str, server: Server, tokens: int) -> None:
        self.name, self.server, self._tokens = name, server, tokens

    def load(self, recordings: Sequence[bytes], together: int) -> Work:
        """A closed loop over HTTP, the replies checked."""
        load = closed_loop(self.server.port, self.server.model, recordings, self.headers(recordings[0]), concurrency=together)
        return Work(load.wall, tuple(reply.seconds for reply in load.replies), self.windows(load.replies))

    def processor_seconds(self) -> float:
        """TorchServe's and its worker's."""
        return self.server.processor_seconds()

    def headers(self, recording: bytes) -> dict[str, str]:
        """What a clip or a long recording is sent with."""
        return (HEADERS if recording.startswith(b"fLaC") else LONG_HEADERS) | {"X-Whisper-Response-Format": "verbose_json"}

    def windows(self, replies: Sequence[Reply]) -> int:
        """How many windows the replies are made of. Raises RuntimeError when they hold other work than was asked for."""
        return sum(windows_of(self.server.model, reply, self._tokens) for reply in replies)


def windows_of(model: str, reply: Reply, tokens: int) -> int:
    """How many windows a reply is made of. Raises RuntimeError when it holds other work than was asked for.

    The plain handler counts them. Ours leaves timestamps out of a segment's tokens, so that its windows are at least so many; that all
    of them hold `tokens` is counted in the same core in process.
    """
    content = json.loads(reply.body)
    if model == "plain":
        counts = content["tokens"]
        right, windows = bool(counts) and set(counts) == {tokens}, len(counts)
    else:
        told, seconds = sum(len(segment["tokens"]) for segment in content["segments"]), content["duration"]
        right = told > tokens // 8 * max(1, seconds // 60) and (seconds > WINDOW_SECONDS or told <= tokens)
        windows = math.ceil(told / tokens)
    if not right:
        raise RuntimeError(f"{model} did not decode {tokens} tokens of every window: {reply.body[:300]!r}")
    return windows


class Alone:
    """A library in a process of its own, started at once and asked through a pipe."""

    def __init__(self, name: str, setup: Setup) -> None:
        context = multiprocessing.get_context("spawn")
        self.name = name
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_obey, args=(theirs, name, setup), daemon=True)
        self._process.start()
        theirs.close()

    def wait_until_ready(self) -> None:
        """Raises LoadError with the reason why there is none."""
        self._answer()

    def load(self, recordings: Sequence[bytes], together: int) -> Work:
        """In its process; what is timed there is the work, not the pipe."""
        self._pipe.send((recordings, together))
        work: Work = self._answer()
        return work

    def processor_seconds(self) -> float:
        """The process's."""
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
"""Transcribe recordings, so many at once → the seconds each took and the tokens of every window."""


def _obey(pipe: Pipe, name: str, setup: Setup) -> None:
    """A library's process: load, then transcribe what comes through the pipe until None does."""
    os.environ["OMP_NUM_THREADS"] = str(setup.threads)
    try:
        with LIBRARIES[name](setup) as run:
            pipe.send(None)
            while (asked := pipe.recv()) is not None:
                pipe.send(_timed(run, asked[0], asked[1], setup.tokens))
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
    """The samples of a recording that is 16 kHz mono already, in memory: what starting an ffmpeg would cost is left out."""
    samples: Samples = soundfile.read(io.BytesIO(recording), dtype="float32")[0]
    return samples


def one_by_one(transcribe: Callable[[bytes], Sequence[int]], workers: int = 1) -> Run:
    """A run of a library that takes one recording at a time, or one a thread."""

    def timed(recording: bytes) -> tuple[float, Sequence[int]]:
        began, counts = time.perf_counter(), transcribe(recording)
        return time.perf_counter() - began, counts

    def run(recordings: Sequence[bytes], together: int) -> tuple[Sequence[float], Sequence[int]]:
        with ThreadPoolExecutor(min(workers, together)) as pool:
            done = list(pool.map(timed, recordings))
        return [seconds for seconds, _ in done], [count for _, counts in done for count in counts]

    return run


def in_batches(transcribe: Callable[[Sequence[bytes]], Sequence[int]]) -> Run:
    """A run of a library that takes several recordings at once."""

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
    """What our server serves, without the server: as many recordings open as there are to be requests."""
    transcriber, engine = in_process(setup.variables)
    with transcriber:

        def run(recordings: Sequence[bytes], together: int) -> tuple[Sequence[float], Sequence[int]]:
            engine.tokens.clear()
            with ThreadPoolExecutor(together) as clients:
                return list(clients.map(one, recordings)), list(engine.tokens)

        def one(recording: bytes) -> float:
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

    def counted(mel: Any, asked: Any) -> Any:
        result = decode(mel, asked)
        counts.append(len(result.tokens))
        return result

    model.decode = counted
    asked = options(model, setup.tokens)

    def transcribe(recording: bytes) -> Sequence[int]:
        counts.clear()
        whisper.transcribe(model, read(recording), **asked)
        return list(counts)

    yield one_by_one(transcribe)


def _faster_whisper(setup: Setup, workers: int = 1) -> tuple[Any, dict[str, Any]]:
    """The model, and what makes it decode `tokens` of every window and no more than once."""
    from faster_whisper import WhisperModel

    threads, precision = max(1, setup.threads // workers), {"cpu": "int8", "cuda": "float16"}[setup.device]
    folder = str(setup.ct2_folder)
    model = WhisperModel(folder, device=setup.device, compute_type=precision, cpu_threads=threads, num_workers=workers)
    tokenizer = model.hf_tokenizer
    never = [-1, *(tokenizer.token_to_id(f"<|{name}|>") for name in ("endoftext", "0.00"))]
    never += range(never[-1] + 1, tokenizer.get_vocab_size())
    asked = {"language": "en", "beam_size": 1, "temperature": 0.0, "suppress_tokens": never}
    # Of max_length, which includes a prompt of 4 tokens, CTranslate2 samples half
    asked |= {"max_new_tokens": 2 * setup.tokens - 4}
    asked |= {"without_timestamps": True, "condition_on_previous_text": False, "no_speech_threshold": None}
    return model, asked | {"log_prob_threshold": None, "compression_ratio_threshold": None}


@contextmanager
def faster_whisper(setup: Setup) -> Iterator[Run]:
    """faster-whisper as its README begins: one window after the other, all threads for each."""
    model, asked = _faster_whisper(setup)
    yield one_by_one(lambda recording: [len(one.tokens) for one in model.transcribe(io.BytesIO(recording), **asked)[0]])


@contextmanager
def faster_whisper_workers(setup: Setup) -> Iterator[Run]:
    """faster-whisper with a worker a core, each fed by a thread: its best for several recordings at once on a CPU."""
    model, asked = _faster_whisper(setup, workers=setup.threads)
    transcribe = lambda recording: [len(one.tokens) for one in model.transcribe(io.BytesIO(recording), **asked)[0]]  # noqa: E731
    yield one_by_one(transcribe, workers=setup.threads)


@contextmanager
def faster_whisper_batched(setup: Setup) -> Iterator[Run]:
    """Its batched pipeline: clips laid end to end, each a window; a long recording cut by its own voice detection."""
    from faster_whisper import BatchedInferencePipeline, decode_audio

    model, asked = _faster_whisper(setup)
    pipeline = BatchedInferencePipeline(model)

    def transcribe(recordings: Sequence[bytes]) -> Sequence[int]:
        samples = [decode_audio(io.BytesIO(recording)) for recording in recordings]
        ends = np.cumsum([len(one) for one in samples]) / SAMPLE_RATE
        clips = [{"start": end - len(one) / SAMPLE_RATE, "end": end} for end, one in zip(ends.tolist(), samples, strict=True)]
        alone = ends[-1] > WINDOW_SECONDS and len(samples) == 1
        cut = {"vad_filter": True} if alone else {"clip_timestamps": clips}
        segments = pipeline.transcribe(np.concatenate(samples), batch_size=BATCH, **cut, **asked)[0]
        return [len(segment.tokens) for segment in segments]

    yield in_batches(transcribe)


@contextmanager
def transformers(setup: Setup) -> Iterator[Run]:
    """transformers' speech recognition pipeline, batches of 16; a long recording in pieces of 30 s that do not overlap."""
    from .huggingface import pipeline

    recognise, counts = pipeline(setup.checkpoint, setup.ct2_folder, setup.device, setup.threads, setup.tokens)

    def transcribe(recordings: Sequence[bytes]) -> Sequence[int]:
        counts.clear()
        given = [{"raw": read(recording), "sampling_rate": SAMPLE_RATE} for recording in recordings]
        recognise(given, batch_size=BATCH)
        return list(counts)

    yield in_batches(transcribe)


@contextmanager
def whisper_cpp(setup: Setup) -> Iterator[Run]:
    """whisper.cpp as pywhispercpp packages it, its q8_0 on a CPU. The package computes on CPUs only."""
    binding, models = import_module("_pywhispercpp"), import_module("pywhispercpp.model")
    if setup.device != "cpu":
        raise RuntimeError("pywhispercpp's wheel computes on CPUs only")
    path = ggml.converted(setup.checkpoint)
    asked = {"max_tokens": setup.tokens - 1, "no_timestamps": True, "single_segment": True, "temperature_inc": 0.0, "no_context": True}
    thresholds = {"no_speech_thold": 1.0, "entropy_thold": 0.0, "logprob_thold": -1e9}
    model: Any = models.Model(str(path), redirect_whispercpp_logs_to=None, n_threads=setup.threads, language="en", print_progress=False)

    def transcribe(recording: bytes) -> Sequence[int]:
        model.transcribe(read(recording), **asked, **thresholds)
        segments = range(binding.whisper_full_n_segments(model._ctx))
        return [binding.whisper_full_n_tokens(model._ctx, one) for one in segments]

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
"""Whose throughput depends on how many recordings there are at once."""
SEVERAL_ONLY = ("faster-whisper, a worker a core",)
"""Who has one core only for a recording."""


@contextmanager
def served(name: str, setup: Setup) -> Iterator[Served]:
    """Ours or the plain handler's server, ready when entered by `wait_until_ready`."""
    server = ours(setup.variables) if name == OURS else plain(setup.checkpoint, setup.tokens, setup.threads)
    with server:
        yield Served(name, server, setup.tokens)
