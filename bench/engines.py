"""Every engine and precision on the same recordings and on random weights of full-size shapes, each in its own process.

python -m bench engines         the bundled model on its held-out set, base-sized random weights; every engine in each of its precisions
python bench/engines.py --model large-v3-turbo --data LibriSpeech/test-clean --precisions float32 float16 int8 --batch 1 16
python bench/engines.py --no-words --sizes large-v3 --engines torch ct2 --device cuda --threads 16

Rows are saved one by one. The same command run again measures the rows that are missing or failed; --again measures all rows.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a file: the path has this folder instead of the package's
    sys.path[0:1] = [str(Path(__file__).resolve().parent.parent / part) for part in ("", "src")]

import argparse
import itertools
import json
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from importlib import metadata
from typing import Any

import psutil
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench import datasets, results, scores
from bench.datasets import Recording, Set
from bench.passes import reason, run_pass
from bench.peers import Hypothesis
from bench.report import engines as report
from bench.report import plot
from bench.work import ROOT, SCRATCH, TOKENS, checkpoint, long_recording
from whispercore import checkpoints
from whispercore.audio.recording import read_samples
from whispercore.catalogue import ENGINES
from whispercore.checkpoints.locations import ct2_folder, exported_folder, locate
from whispercore.devices import choose_device
from whispercore.engines import Engine, load_engine, precisions
from whispercore.errors import ConfigurationError
from whispercore.options import Options
from whispercore.serving.transcriber import Transcriber
from whispercore.settings import Settings, model_name
from whispercore.types import SAMPLE_RATE, WINDOW_SAMPLES, WINDOW_SECONDS, Decoding, Samples, Window

MEASURED = tuple(name for name, entry in ENGINES.items() if entry.package)
"""The engines that are measured by default."""
BATCHES = (1, 8)
SIZES = ("base",)
WINDOWS = 8
"""Windows decoded with random weights, after a first batch that is not measured."""
SAMPLE_EVERY_SECONDS = 0.02
"""The interval at which the GPU's used memory is sampled."""

GREEDY = Options(language="en", vad_filter=False, compression_ratio_threshold=None, logprob_threshold=None, no_speech_threshold=None)
"""Every window is decoded once, greedily, without fallback: the comparison is of engines, not of fallback rules."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One configuration.

    `data`: a folder or manifest of recordings, `heldout`, or `random` for random weights and a fixed token count.
    """

    model: str
    data: str
    engine: str
    precision: str
    batch: int
    device: str
    threads: int
    limit: int | None = None
    windows: int = WINDOWS
    compiled: bool = False
    """With torch.compile, which only the engine torch supports."""

    @property
    def settings(self) -> Settings:
        """The core's settings."""
        return Settings(
            model=str(checkpoint(self.model)) if self.data == "random" else self.model,
            models_dir=str(ROOT / "whisper-models"),
            converted_dir=str(ROOT / "build" / "models"),
            engine=self.engine,
            device=self.device,
            dtype=self.precision,
            threads=self.threads,
            batch_size=self.batch,
            fixed_tokens=TOKENS if self.data == "random" else 0,
            compile=self.compiled,
        )

    @property
    def key(self) -> dict[str, Any]:
        """The fields without this machine's folders. Rows with equal keys are the same measurement."""
        names = {"model": model_name(Path(self.model)), "data": Path(self.data).stem}
        return asdict(self) | names | {"device": choose_device(self.settings)}


def measure(row: Row) -> dict[str, Any]:
    """A row's figures, measured in this process, which must be a fresh one.

    Raises ConfigurationError for an unsupported row.
    """
    settings = row.settings
    with gpu_memory(choose_device(settings)) as peak_gpu:
        engine = load_engine(settings)
        description = engine.describe()
        load_seconds = time.time() - psutil.Process().create_time()
        figures = _speed(engine, row) if row.data == "random" else _words(engine, settings, row)
        figures["rtfx"] = round(figures["audio_seconds"] / figures["seconds"], 2)
        figures["cores"] = round(figures["cpu_seconds"] / figures["seconds"], 2)
        engine.close()
    return figures | {
        "load_seconds": round(load_seconds, 2),
        "peak_rss_mb": peak_rss_mb(),
        "peak_gpu_mb": peak_gpu(),
        "disk_mb": disk_mb(settings, description),
        "described": {name: value for name, value in description.items() if name != "model"},
        "package": f"{package} {metadata.version(package)}" if (package := ENGINES[row.engine].package) else None,
    }


def _words(engine: Engine, settings: Settings, row: Row) -> dict[str, Any]:
    """Word error rate and time of all recordings. `2 × batch` recordings are open at a time."""
    recordings = recordings_of(row.data)[: row.limit]
    with Transcriber(settings, engine=engine) as transcriber:

        def transcribe(path: Path, words: bool, language: str | None) -> Hypothesis:
            return Hypothesis(transcriber.submit(path, GREEDY).result().text)

        _warm_up(engine, row.batch, Decoding(language=GREEDY.language), read_samples(recordings[0].path))
        run_pass(transcribe, Set(row.data, recordings[: 2 * row.batch]), together=2 * row.batch, tick=lambda: None)
        done = run_pass(transcribe, Set(row.data, recordings), together=2 * row.batch, tick=lambda: None)
    references, hypotheses = [recording.text for recording in recordings], [hypothesis.text for hypothesis in done.hypotheses]
    errors = scores.errors(references, hypotheses, GREEDY.language)
    return {
        "recordings": errors["recordings"],
        "words": errors["words"],
        "wer": errors["wer"],
        "wer_normalized": errors["whisper_normalizer"]["wer"],
        "failed": len(done.failures),
        "failures": done.failures[:3],
        "audio_seconds": round(sum(recording.seconds for recording in recordings), 2),
        "seconds": round(done.seconds, 3),
        "cpu_seconds": round(done.cpu_seconds, 3),
    }


def _warm_up(engine: Engine, batch: int, decoding: Decoding, samples: Samples) -> None:
    """Decode batches of 1, 2, 4, … windows and the largest batch, so that compiling and allocating for each size is
    not measured."""
    window = Window(samples[:WINDOW_SAMPLES], 0.0, decoding)
    for size in sorted({*(1 << power for power in range(batch.bit_length())), batch}):
        engine.decode([window] * size)


def _speed(engine: Engine, row: Row) -> dict[str, Any]:
    """The time of full windows with `TOKENS` tokens decoded from each.

    Raises RuntimeError when the engine decodes another number.
    """
    decoding = Decoding(language="en", ignore_eot=True, max_tokens=TOKENS)
    speech = read_samples(long_recording(120))
    step = SAMPLE_RATE * 10
    windows = [Window(speech[i % 9 * step :][:WINDOW_SAMPLES], 0.0, decoding) for i in range(row.batch + max(row.windows, row.batch))]
    engine.decode(windows[: row.batch])
    began, cpu = time.perf_counter(), time.process_time()
    decoded = [result for i in range(row.batch, len(windows), row.batch) for result in engine.decode(windows[i : i + row.batch])]
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu
    counts = {len(result.tokens) for result in decoded}
    if counts != {TOKENS}:
        raise RuntimeError(f"{TOKENS} tokens were to be decoded from every window; it was {sorted(counts)}")
    audio = {"windows": len(decoded), "tokens": TOKENS, "audio_seconds": len(decoded) * WINDOW_SECONDS}
    return audio | {"seconds": round(seconds, 3), "cpu_seconds": round(cpu_seconds, 3)}


def recordings_of(data: str) -> list[Recording]:
    """The recordings of `heldout`, a manifest, LibriSpeech's layout, or a folder of audio and .txt files.

    Raises ConfigurationError.
    """
    return datasets.manifest(datasets.HELDOUT) if data == "heldout" else datasets.of(Path(data))


def disk_mb(settings: Settings, description: dict[str, Any]) -> float:
    """The size of the files that the engine reads, in MB; includes the checkpoint where PyTorch encodes for
    CTranslate2."""
    paths = {artifact(settings)} | ({locate(settings)} if str(description.get("encoder")).startswith("torch") else set())
    return round(sum(file.stat().st_size for path in paths for file in _files(path)) / 1e6, 1)


def artifact(settings: Settings) -> Path:
    """The checkpoint, or the folder converted from it for the engine."""
    device, form = choose_device(settings), ENGINES[settings.engine].reads
    if form == "ct2":
        from whispercore.checkpoints.compute_types import precision

        return ct2_folder(settings, locate(settings), precision(settings, device))
    if form in ("onnx", "sherpa"):
        from whispercore.checkpoints.onnx_export import precision as exported

        return exported_folder(settings, settings.engine, exported(settings, device if settings.engine == "onnx" else "cpu"))
    return locate(settings)


def _files(path: Path) -> list[Path]:
    return [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]


def peak_rss_mb() -> float:
    """The peak resident memory of this process, in MB of 1,000,000 bytes (Linux: VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return round(next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e6, 1)


@contextmanager
def gpu_memory(device: str) -> Iterator[Callable[[], float | None]]:
    """The peak of the GPU memory used since entering, in MB; None without a GPU.

    The figure comes from the device, because only PyTorch counts its own allocations. No other process may use the GPU.
    """
    if device != "cuda":
        yield lambda: None
        return
    before, ended = _gpu_used(), threading.Event()
    peak = before

    def watch() -> None:
        nonlocal peak
        while not ended.wait(SAMPLE_EVERY_SECONDS):
            peak = max(peak, _gpu_used())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield lambda: round((peak - before) / 1e6, 1)
    finally:
        ended.set()
        watcher.join()


def _gpu_used() -> int:
    free, total = torch.cuda.mem_get_info()
    return int(total - free)


def apart(row: Row, timeout: float) -> dict[str, Any]:
    """The figures of a row, measured in its own process, or {"failure": the reason}."""
    try:
        checkpoints.prepare(row.settings)  # in the row's process it would count as the engine's memory
    except Exception as error:
        return {"failure": reason(error)}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "figures.json"
        command = [sys.executable, "-m", "bench.engines", "--row", json.dumps(asdict(row)), "--out", str(out)]
        try:
            done = subprocess.run(command, cwd=ROOT, env=_environment(row), capture_output=True, text=True, timeout=timeout)
        except subprocess.TimeoutExpired:
            return {"failure": f"not done after {timeout:g} s"}
        except OSError as error:  # no memory for another process
            return {"failure": reason(error)}
        if out.exists():
            figures: dict[str, Any] = json.loads(out.read_text())
            return figures
    last = (done.stderr.strip() or "no message").splitlines()[-1].replace(f"{ROOT}/", "")
    end = f"killed by signal {-done.returncode}, 9 where memory ran out" if done.returncode < 0 else f"status {done.returncode}"
    return {"failure": f"its process ended with {end}: {last[:200]}"}


def _environment(row: Row) -> dict[str, str]:
    """Without the server's settings. JAX must not preallocate most of the GPU's memory."""
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    own = {"PYTHONPATH": path, "OMP_NUM_THREADS": str(row.threads), "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    return {name: value for name, value in os.environ.items() if not name.startswith("WHISPER_")} | own


def run(rows: Sequence[Row], folder: Path, *, again: bool, timeout: float, console: Console) -> list[dict[str, Any]]:
    """Measure the rows that engines.json does not have, saving each one. Returns all rows of engines.json."""
    origin = results.provenance()
    measured: list[dict[str, Any]] = (results.load(folder, "engines") or {"result": {"rows": []}})["result"]["rows"]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("engines", total=len(rows))
        try:
            for row in rows:
                progress.update(task, description=f"{row.model} {row.engine} {report.precision(row.key)} batch {row.batch}")
                if again or not any(_is(entry, row) and "failure" not in entry for entry in measured):
                    figures = row.key | {"measured": _now(), **apart(row, timeout)}
                    measured = [entry for entry in measured if not _is(entry, row)] + [figures]
                    _save(folder, origin, measured)
                    progress.console.print(report.line(figures), soft_wrap=True)
                progress.advance(task)
        except KeyboardInterrupt:
            progress.console.print("engines: stopped; finished rows are saved")
    return measured


def _is(entry: dict[str, Any], row: Row) -> bool:
    """Whether an entry of engines.json is this row."""
    return all(entry.get(name, False) == value for name, value in row.key.items())


def _now() -> dict[str, Any]:
    origin = results.provenance()
    return {name: origin[name] for name in ("date", "commit", "dirty", "load_average", "machine")}


def _save(folder: Path, origin: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Save the rows in an order that does not depend on the order of measuring."""
    order = sorted(rows, key=lambda row: (row["data"] == "random", row["data"], row["model"], row["batch"]))
    results.save(folder, "engines", origin, {"baseline": " ".join(report.BASELINE), "tokens": TOKENS}, {"rows": order})


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0; 1 when a row failed or was not measured; 2 when an engine, a model or a data set does not
    exist."""
    arguments = _parser().parse_args(argv)
    if arguments.row:
        return _child(Row(**json.loads(arguments.row)), arguments.out)
    console = Console(stderr=True, highlight=False)
    try:
        rows = chosen(arguments)
    except ConfigurationError as error:
        console.print(f"[red]engines:[/red] {error}")
        return 2
    folder = (arguments.results or (results.RESULTS if _standard(arguments) else SCRATCH / "engines")).resolve()
    measured = run(rows, folder, again=arguments.again, timeout=arguments.timeout, console=console)
    console.print(f"engines: {folder / 'engines.json'}; {plot.engines(folder, measured)}")
    if folder == results.RESULTS:
        report.update()
    print(json.dumps(results.load(folder, "engines"), indent=1) if arguments.json else report.tables(folder))
    requested = [entry for entry in measured if any(_is(entry, row) for row in rows)]
    return 0 if len(requested) == len(rows) and not any("failure" in entry for entry in requested) else 1


def chosen(arguments: argparse.Namespace) -> list[Row]:
    """Every configuration that the command names, recordings first. Raises ConfigurationError."""
    if unknown := [name for name in arguments.engines if name not in ENGINES]:
        raise ConfigurationError(f"unknown engine '{unknown[0]}'; known: {', '.join(ENGINES)}", param="engines")
    if arguments.words:
        recordings_of(arguments.data)
    for size in arguments.sizes:
        checkpoints.dimensions(size)
    models = [(model, arguments.data) for model in arguments.model * arguments.words] + [(size, "random") for size in arguments.sizes]
    make_row = partial(Row, device=arguments.device, threads=arguments.threads)
    for model, data in models:
        locate(make_row(model=model, data=data, engine="openai", precision="auto", batch=1).settings)
    device = choose_device(Settings(device=arguments.device))
    kinds = [
        {"engine": engine, "precision": precision, "compiled": compiled}
        for engine in arguments.engines
        for precision in arguments.precisions or _precisions(engine, device)
        for compiled in (False, True)[: 1 + (arguments.compile and engine == "torch")]
    ]
    amounts = {True: {"windows": arguments.windows}, False: {"limit": arguments.limit}}
    return [
        make_row(model=model, data=data, batch=batch, **kind, **amounts[data == "random"])
        for (model, data), batch, kind in itertools.product(models, arguments.batch, kinds)
    ]


def _precisions(engine: str, device: str) -> tuple[str, ...]:
    """All precisions of the engine; `auto` for one that is not installed, so that its row reports the failure."""
    try:
        return precisions(engine, device)
    except ConfigurationError:
        return ("auto",)


def _child(row: Row, out: Path) -> int:
    """Measure one row in this process and write its figures, or the failure, to a file."""
    try:
        figures = measure(row)
    except Exception as error:
        figures = {"failure": reason(error)}
    out.with_suffix(".part").write_text(json.dumps(figures))
    out.with_suffix(".part").rename(out)
    return 0


def _standard(arguments: argparse.Namespace) -> bool:
    """Whether the results belong into bench/results: the data is in the repository."""
    defaults = vars(_parser().parse_args([]))
    return all(getattr(arguments, name) == defaults[name] for name in ("model", "data", "limit"))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench engines", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    which = parser.add_argument_group("configurations")
    which.add_argument("--engines", nargs="+", default=list(MEASURED), metavar="ENGINE", help=f"default: {' '.join(MEASURED)}")
    which.add_argument(
        "--precisions",
        nargs="+",
        metavar="DTYPE",
        help="dtypes of the settings; default: all precisions of each engine on the device",
    )
    which.add_argument(
        "--batch", nargs="+", type=int, default=list(BATCHES), metavar="N", help="windows decoded together at most; default: 1 8"
    )
    which.add_argument("--compile", action="store_true", help="measure engine torch with torch.compile, too")
    which.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    which.add_argument("--threads", type=int, default=1, help="CPU threads of the engine; default: 1")
    work = parser.add_argument_group("work")
    work.add_argument("--model", nargs="+", default=["nano"], help="checkpoints, by name or path; default: the bundled one")
    work.add_argument("--data", default="heldout", help="LibriSpeech/test-clean, a folder, a manifest; default: the held-out set")
    work.add_argument("--limit", type=int, metavar="N", help="the first N recordings only")
    work.add_argument(
        "--words", action=argparse.BooleanOptionalAction, default=True, help="measure on recordings; --no-words: on random weights only"
    )
    work.add_argument(
        "--sizes",
        nargs="*",
        default=list(SIZES),
        help="shapes of random weights to measure speed; default: base; none when no size is named",
    )
    work.add_argument(
        "--windows", type=int, default=WINDOWS, metavar="N", help="windows decoded with random weights; default: 8, at least one batch"
    )
    parser.add_argument("--again", action="store_true", help="measure rows again that are measured already")
    parser.add_argument("--timeout", type=float, default=3600.0, help="seconds after which a row fails; default: an hour")
    parser.add_argument(
        "--results", type=Path, metavar="DIR", help="where engines.json is (default: bench/results; build/bench/engines for other data)"
    )
    parser.add_argument("--json", action="store_true", help="print the results as JSON, not as a table")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
