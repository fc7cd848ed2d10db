"""The contenders of bench/serve.py: servers over HTTP, and libraries, each in its own process.

All contenders get the same weights, threads, recordings and language, and decode greedily. With trained weights each ends a window by
its own rules and keeps its defaults, fallback included; its transcripts are scored. With random weights all decode the same number of
tokens from every window, once, and count them. A library gets recordings one by one, or in batches where its API supports them.
"""

from __future__ import annotations

import io
import json
import math
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import psutil

from whispercore import checkpoints
from whispercore.api import request
from whispercore.api.fields import RAW_FIELD
from whispercore.audio.recording import read_samples
from whispercore.checkpoints.compute_types import precision
from whispercore.settings import Settings
from whispercore.types import SAMPLE_RATE

from . import ggml
from .load import LoadError, Reply, Work, closed_loop
from .server import DEFAULT_SPINS, Server, ours, peak_megabytes, plain
from .work import HEADERS, checkpoint, environment, in_process, trained

OURS, CORE, PLAIN = "this server", "core", "plain handler"
WORKERS, BATCHED, SEQUENTIAL = "faster-whisper, a worker a core", "faster-whisper batched", "faster-whisper"
WINDOW_SECONDS = 30
BATCH, LARGE_BATCH = 8, 16
"""The largest batches of recordings or windows for a library: faster-whisper's default, and twice that."""
LANGUAGE = "en"
"""Every contender is told the language."""
LARGE_BATCHED = f"{BATCHED}, {LARGE_BATCH} windows"
START_SECONDS = 600.0
WITHOUT_BFLOAT16 = {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI"}
"""Environment in which oneDNN uses no bfloat16 instructions (its documentation: CPU dispatcher control)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What all contenders have in common.

    `tokens`: decoded from every window of random weights; 0: trained weights, which end by themselves. `bfloat16`: whether our engine
    may encode in bfloat16 where the processor multiplies it.
    """

    size: str
    device: str
    threads: int
    tokens: int = 0
    bfloat16: bool = True

    @property
    def checkpoint(self) -> Path:
        """The weights in OpenAI's format, from which every other format is converted."""
        return checkpoint(self.size) if self.tokens else trained(self.size)

    @property
    def variables(self) -> dict[str, str]:
        """Our settings as environment variables. The checkpoint is converted for them."""
        variables = {"WHISPER_DEVICE": self.device, "WHISPER_THREADS": str(self.threads)}
        return environment(self.checkpoint, tokens=self.tokens) | variables | ({} if self.bfloat16 else WITHOUT_BFLOAT16)

    @property
    def ct2_folder(self) -> Path:
        """The checkpoint in CTranslate2's format: int8 on a CPU, fp16 on a GPU."""
        settings = Settings.load(environ=self.variables | {"WHISPER_ENGINE": "ct2"})
        checkpoints.prepare(settings)
        return checkpoints.converted_folder(settings, self.checkpoint, precision(settings, self.device))


class Contender(Protocol):
    """A running contender."""

    name: str

    def load(self, recordings: Sequence[bytes], together: int, strategy: str = "chunked") -> Work:
        """Transcribe all recordings, `together` at a time. `strategy`: of our server and core; the others have one each.

        Raises RuntimeError when random weights decoded another number of tokens.
        """
        ...

    def processor_seconds(self) -> float:
        """Processor time that its processes have used so far."""
        ...

    def peak_megabytes(self) -> float:
        """Peak resident memory of its processes together."""
        ...


def headers(recording: bytes, setup: Setup, strategy: str) -> dict[str, str]:
    """The headers of a request to our server.

    A long recording of random weights is cut with VAD; everything else that changes the amount of work is off there.
    """
    media = {b"fLaC": "audio/flac", b"OggS": "audio/ogg"}.get(recording[:4], "audio/mpeg")
    options = {"X-Whisper-Language": LANGUAGE}
    if setup.tokens:
        options = {name: value for name, value in HEADERS.items() if "Vad" not in name or media == "audio/flac"}
    return options | {"Content-Type": media, "X-Whisper-Strategy": strategy, "X-Whisper-Response-Format": "verbose_json"}


class Served:
    """A TorchServe with our model or the plain handler's."""

    def __init__(self, name: str, server: Server, setup: Setup) -> None:
        self.name, self.server, self._setup = name, server, setup

    def load(self, recordings: Sequence[bytes], together: int, strategy: str = "chunked") -> Work:
        """A closed loop over HTTP. The replies are checked."""
        load = closed_loop(self.server.port, self.server.model, recordings, self.headers(recordings[0], strategy), concurrency=together)
        texts = tuple(str(json.loads(reply.body)["text"]) for reply in load.replies)
        return Work(load.wall, tuple(reply.seconds for reply in load.replies), self.windows(load.replies), texts)

    def processor_seconds(self) -> float:
        """Processor time of TorchServe and its worker so far."""
        return self.server.processor_seconds()

    def peak_megabytes(self) -> float:
        """Peak resident memory of TorchServe, its worker and the gateway."""
        return self.server.peak_megabytes()

    def headers(self, recording: bytes, strategy: str = "chunked") -> dict[str, str]:
        """The request's headers for a recording; the plain handler ignores them."""
        return headers(recording, self._setup, strategy)

    def windows(self, replies: Sequence[Reply]) -> int:
        """The number of windows of random weights in the replies; 0 with trained weights.

        Raises RuntimeError when another number of tokens was decoded.
        """
        tokens = self._setup.tokens
        return sum(windows_of(self.server.model, reply, tokens) for reply in replies) if tokens else 0


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
        with _openmp(setup.threads, "" if name == CORE else DEFAULT_SPINS):
            self._process.start()
        theirs.close()

    def wait_until_ready(self) -> None:
        """Raises LoadError with the reason when the library cannot be loaded."""
        self._answer()

    def load(self, recordings: Sequence[bytes], together: int, strategy: str = "chunked") -> Work:
        """Transcribe in the library's process. The time does not include the pipe."""
        self._pipe.send((recordings, together, strategy))
        work: Work = self._answer()
        return work

    def processor_seconds(self) -> float:
        """Processor time of the process so far."""
        used = psutil.Process(self._process.pid).cpu_times()
        return float(used.user + used.system)

    def peak_megabytes(self) -> float:
        """Peak resident memory of the process."""
        return peak_megabytes(self._process.pid or 0)

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


@contextmanager
def _openmp(threads: int, spins: str) -> Iterator[None]:
    """OpenMP's settings for processes that are started meanwhile; it reads them when a library is loaded. Empty: unchanged."""
    before = dict(os.environ)
    os.environ.update({"OMP_NUM_THREADS": str(threads)} | ({"GOMP_SPINCOUNT": spins} if spins else {}))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@dataclass(frozen=True, slots=True)
class Heard:
    """What a library made of recordings: seconds and text of each, the token count of every window, the longest batch."""

    seconds: Sequence[float]
    texts: Sequence[str]
    counts: Sequence[int]
    batch_seconds: float = 0.0


Run = Callable[[Sequence[bytes], int, str], Heard]
"""Transcribe recordings, a number of them at once, by a strategy."""


def _serve_pipe(pipe: Pipe, name: str, setup: Setup) -> None:
    """The main loop of a library's process: load the library, then transcribe recordings from the pipe until it sends
    None."""
    try:
        with LIBRARIES[name](setup) as run:
            pipe.send(None)
            while (request := pipe.recv()) is not None:
                recordings, together, strategy = request
                pipe.send(_timed(run, recordings, together, strategy, setup.tokens))
    except EOFError:
        pass
    except Exception as error:
        pipe.send(RuntimeError(f"{type(error).__name__}: {error}"))


def _timed(run: Run, recordings: Sequence[bytes], together: int, strategy: str, tokens: int) -> Work:
    began = time.perf_counter()
    heard = run(recordings, together, strategy)
    wall = time.perf_counter() - began
    if tokens and set(heard.counts) != {tokens}:
        raise RuntimeError(f"{tokens} tokens were to be decoded from every window; it was {sorted(set(heard.counts))}")
    windows = len(heard.counts) if tokens else 0
    return Work(wall, tuple(heard.seconds), windows, tuple(heard.texts), batch_seconds=heard.batch_seconds)


Text = tuple[str, Sequence[int]]
"""A recording's text, and the token count of each of its windows."""


def one_by_one(transcribe: Callable[[bytes], Text], workers: int = 1) -> Run:
    """The run of a library that takes one recording at a time, or one per worker thread."""

    def timed(recording: bytes) -> tuple[float, Text]:
        began, text = time.perf_counter(), transcribe(recording)
        return time.perf_counter() - began, text

    def run(recordings: Sequence[bytes], together: int, strategy: str) -> Heard:
        with ThreadPoolExecutor(min(workers, together)) as pool:
            done = list(pool.map(timed, recordings))
        counts = [count for _, (_, counts) in done for count in counts]
        return Heard([seconds for seconds, _ in done], [text for _, (text, _) in done], counts)

    return run


def in_batches(transcribe: Callable[[Sequence[bytes]], tuple[Sequence[str], Sequence[int]]]) -> Run:
    """The run of a library that takes a batch of recordings and returns their texts and the windows' token counts."""

    def run(recordings: Sequence[bytes], together: int, strategy: str) -> Heard:
        seconds: list[float] = []
        texts: list[str] = []
        counts: list[int] = []
        for first in range(0, len(recordings), together):
            batch, began = recordings[first : first + together], time.perf_counter()
            batch_texts, batch_counts = transcribe(batch)
            seconds += [time.perf_counter() - began] * len(batch)
            texts += batch_texts
            counts += batch_counts
        return Heard(seconds, texts, counts)

    return run


@contextmanager
def core(setup: Setup) -> Iterator[Run]:
    """Our core in this process, without the server: as many recordings are open as the server would have requests."""
    os.environ.update({} if setup.bfloat16 else WITHOUT_BFLOAT16)
    transcriber, engine = in_process(setup.variables)
    with transcriber:

        def run(recordings: Sequence[bytes], together: int, strategy: str) -> Heard:
            engine.tokens.clear()
            engine.batch_seconds.clear()
            with ThreadPoolExecutor(together) as clients:
                done = list(clients.map(lambda recording: transcribe(recording, strategy), recordings))
            seconds, texts = [seconds for seconds, _ in done], [text for _, text in done]
            return Heard(seconds, texts, list(engine.tokens), max(engine.batch_seconds, default=0.0))

        def transcribe(recording: bytes, strategy: str) -> tuple[float, str]:
            began = time.perf_counter()
            options = request.parse({RAW_FIELD: b"-"}, headers(recording, setup, strategy)).options
            transcript = transcriber.submit(recording, options).result()
            return time.perf_counter() - began, transcript.text

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

    def transcribe(recording: bytes) -> Text:
        counts.clear()
        return whisper.transcribe(model, read_samples(recording), **arguments)["text"], list(counts)

    yield one_by_one(transcribe)


def _faster_whisper(setup: Setup, workers: int = 1) -> tuple[Any, dict[str, Any]]:
    """The model and its arguments: greedy with its own defaults, or exactly `tokens` tokens of every window, once."""
    from faster_whisper import WhisperModel

    threads, precision = max(1, setup.threads // workers), {"cpu": "int8", "cuda": "float16"}[setup.device]
    folder = str(setup.ct2_folder)
    model = WhisperModel(folder, device=setup.device, compute_type=precision, cpu_threads=threads, num_workers=workers)
    # best_of: the samples of a fallback; 1 is the default of openai-whisper and ours, and faster than its own 5
    options: dict[str, Any] = {"language": LANGUAGE, "beam_size": 1, "best_of": 1}
    if not setup.tokens:
        return model, options
    tokenizer = model.hf_tokenizer
    never = [-1, *(tokenizer.token_to_id(f"<|{name}|>") for name in ("endoftext", "0.00"))]
    never += range(never[-1] + 1, tokenizer.get_vocab_size())
    # CTranslate2 samples half of max_length, which includes a prompt of 4 tokens
    options |= {"temperature": 0.0, "suppress_tokens": never, "max_new_tokens": 2 * setup.tokens - 4}
    options |= {"without_timestamps": True, "condition_on_previous_text": False, "no_speech_threshold": None}
    return model, options | {"log_prob_threshold": None, "compression_ratio_threshold": None}


def _joined(segments: Iterable[Any]) -> Text:
    """The text of faster-whisper's segments, and the token count of each."""
    decoded = list(segments)
    return "".join(segment.text for segment in decoded), [len(segment.tokens) for segment in decoded]


@contextmanager
def faster_whisper(setup: Setup) -> Iterator[Run]:
    """faster-whisper as in its README: one window after the other, with all threads."""
    model, options = _faster_whisper(setup)
    yield one_by_one(lambda recording: _joined(model.transcribe(io.BytesIO(recording), **options)[0]))


@contextmanager
def faster_whisper_workers(setup: Setup) -> Iterator[Run]:
    """faster-whisper with one worker per core, each fed by a thread: its fastest mode for several recordings on a
    CPU."""
    model, options = _faster_whisper(setup, workers=setup.threads)
    yield one_by_one(lambda recording: _joined(model.transcribe(io.BytesIO(recording), **options)[0]), workers=setup.threads)


@contextmanager
def faster_whisper_batched(setup: Setup, batch: int = BATCH) -> Iterator[Run]:
    """faster-whisper's batched pipeline: clips are concatenated, one window each; a long recording is cut by its own
    VAD."""
    from faster_whisper import BatchedInferencePipeline, decode_audio

    model, options = _faster_whisper(setup)
    pipeline = BatchedInferencePipeline(model)

    def transcribe(recordings: Sequence[bytes]) -> tuple[Sequence[str], Sequence[int]]:
        samples = [decode_audio(io.BytesIO(recording)) for recording in recordings]
        ends = np.cumsum([len(clip) for clip in samples]) / SAMPLE_RATE
        if ends[-1] > WINDOW_SECONDS and len(samples) == 1:
            text, counts = _joined(pipeline.transcribe(samples[0], batch_size=batch, vad_filter=True, **options)[0])
            return [text], counts
        clips = [{"start": end - len(clip) / SAMPLE_RATE, "end": end} for end, clip in zip(ends.tolist(), samples, strict=True)]
        # faster-whisper refuses clips that are longer together than the recording, even by a rounding error
        joined = np.concatenate([*samples, np.zeros(SAMPLE_RATE // 100, np.float32)])
        decoded = list(pipeline.transcribe(joined, batch_size=batch, clip_timestamps=clips, **options)[0])
        texts = [""] * len(samples)
        for segment in decoded:
            texts[int(np.searchsorted(ends, (segment.start + segment.end) / 2))] += segment.text
        return texts, [len(segment.tokens) for segment in decoded]

    yield in_batches(transcribe)


@contextmanager
def transformers(setup: Setup) -> Iterator[Run]:
    """transformers' speech recognition pipeline with batches of 8. A long recording is cut into chunks of 30 s.

    The chunks overlap by its default; those of random weights do not.
    """
    from .huggingface import pipeline

    recognise, counts = pipeline(setup.checkpoint, setup.ct2_folder, setup.device, setup.threads, setup.tokens)

    def transcribe(recordings: Sequence[bytes]) -> tuple[Sequence[str], Sequence[int]]:
        counts.clear()
        inputs = [{"raw": read_samples(recording), "sampling_rate": SAMPLE_RATE} for recording in recordings]
        return [output["text"] for output in recognise(inputs, batch_size=BATCH)], list(counts)

    yield in_batches(transcribe)


@contextmanager
def whisper_cpp(setup: Setup) -> Iterator[Run]:
    """whisper.cpp by pywhispercpp, with q8_0 weights. The package supports CPUs only."""
    binding, models = import_module("_pywhispercpp"), import_module("pywhispercpp.model")
    if setup.device != "cpu":
        raise RuntimeError("pywhispercpp's wheel computes on CPUs only")
    path = ggml.converted(setup.checkpoint, endless=bool(setup.tokens))
    fixed = {"max_tokens": setup.tokens - 1, "no_timestamps": True, "single_segment": True, "temperature_inc": 0.0, "no_context": True}
    fixed |= {"no_speech_thold": 1.0, "entropy_thold": 0.0, "logprob_thold": -1e9}
    options = fixed if setup.tokens else {}
    model: Any = models.Model(str(path), redirect_whispercpp_logs_to=None, n_threads=setup.threads, language=LANGUAGE, print_progress=False)

    def transcribe(recording: bytes) -> Text:
        decoded = model.transcribe(read_samples(recording), **options)
        segments = range(binding.whisper_full_n_segments(model._ctx))
        counts = [binding.whisper_full_n_tokens(model._ctx, segment) for segment in segments]
        return " ".join(segment.text for segment in decoded), counts

    yield one_by_one(transcribe)


LIBRARIES: dict[str, Callable[[Setup], AbstractContextManager[Run]]] = {
    CORE: core,
    SEQUENTIAL: faster_whisper,
    BATCHED: faster_whisper_batched,
    LARGE_BATCHED: partial(faster_whisper_batched, batch=LARGE_BATCH),
    WORKERS: faster_whisper_workers,
    "whisper.cpp": whisper_cpp,
    "openai-whisper": openai_whisper,
    "transformers": transformers,
}


@dataclass(frozen=True, slots=True)
class Form:
    """The loads that a contender gets.

    `strategies`: how it cuts a long recording, its default first; empty: it gets none. `together`: the least and the greatest number of
    clips at once from which its throughput gains. `slow`: it gets one round, fewer clips, and the beginning of the long recording.
    """

    strategies: tuple[str, ...]
    together: tuple[int, int] = (1, 1)
    slow: bool = False


MANY = 1_000
FORMS: dict[str, Form] = {
    OURS: Form(("chunked", "sequential"), (1, MANY)),
    CORE: Form(("chunked", "sequential"), (1, MANY)),
    SEQUENTIAL: Form(("sequential",)),
    BATCHED: Form(("chunked",), (1, BATCH)),
    LARGE_BATCHED: Form(("chunked",), (0, 0)),
    WORKERS: Form((), (2, BATCH)),
    "whisper.cpp": Form(("sequential",)),
    PLAIN: Form(("sequential",), slow=True),
    "openai-whisper": Form(("sequential",), slow=True),
    "transformers": Form(("chunked",), (1, BATCH), slow=True),
}
"""All contenders, in the order of the table."""


@contextmanager
def served(name: str, setup: Setup) -> Iterator[Served]:
    """Our server or the plain handler's, started; `server.wait_until_ready` waits for it."""
    server = ours(setup.variables) if name == OURS else plain(setup.checkpoint, setup.tokens, setup.threads)
    with server:
        yield Served(name, server, setup)
