"""Engines: every runtime and precision on the same recordings and in full-size shapes of random weights, each in a process of its own.

python -m bench engines         the bundled model on its held-out set, base-sized random weights; every engine in each of its precisions
python bench/engines.py --model large-v3-turbo --data LibriSpeech/test-clean --precisions float32 float16 int8 --batch 1 16
python bench/engines.py --no-words --sizes large-v3 --engines torch ct2 --device cuda --threads 16

What has been measured already is kept, row by row; started again it goes on with what is missing or failed. --again measures all anew.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # started as a file: its folder is on the path, and the package is not
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

from bench import datasets, engines_table, results, scores
from bench.datasets import Recording, Set
from bench.listening import listen, reason
from bench.peers import Heard
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

PACKAGES = {
    "openai": "openai-whisper",
    "torch": "torch",
    "ct2": "ctranslate2",
    "hf": "transformers",
    "jax": "jax",
    "onnx": "onnxruntime",
    "sherpa": "sherpa-onnx",
}
"""What each engine's figures are of."""
MEASURED = tuple(PACKAGES)
BATCHES = (1, 8)
SIZES = ("base",)
WINDOWS = 8
"""Of random weights, decoded after a first batch that nobody counts."""
SAMPLE_EVERY_SECONDS = 0.02
"""How often the GPU is asked how much of its memory is taken."""

GREEDY = Options(language="en", vad_filter=False, compression_ratio_threshold=None, logprob_threshold=None, no_speech_threshold=None)
"""Each window once, greedily: no threshold asks for another temperature. Engines are compared, not what is done about bad answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One configuration. `data`: the recordings' folder or manifest, heldout, or random for a fixed number of tokens of random weights."""

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
    """By torch.compile, which engine torch alone can be."""

    @property
    def settings(self) -> Settings:
        """The core's own."""
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
    def named(self) -> dict[str, Any]:
        """What it is, without this machine's folders: two rows with equal names are the same measurement."""
        names = {"model": model_name(Path(self.model)), "data": Path(self.data).stem}
        return asdict(self) | names | {"device": choose_device(self.settings)}


def measure(row: Row) -> dict[str, Any]:
    """A row's figures, measured in this process, which is to be a fresh one. Raises ConfigurationError for what cannot be."""
    settings = row.settings
    with gpu_memory(choose_device(settings)) as peak_gpu:
        engine = load_engine(settings)
        described = engine.describe()
        load_seconds = time.time() - psutil.Process().create_time()
        figures = _speed(engine, row) if row.data == "random" else _words(engine, settings, row)
        figures["rtfx"] = round(figures["audio_seconds"] / figures["seconds"], 2)
        figures["cores"] = round(figures["cpu_seconds"] / figures["seconds"], 2)
        engine.close()
    return figures | {
        "load_seconds": round(load_seconds, 2),
        "peak_rss_mb": peak_rss_mb(),
        "peak_gpu_mb": peak_gpu(),
        "disk_mb": disk_mb(settings, described),
        "described": {name: value for name, value in described.items() if name != "model"},
        "package": f"{PACKAGES[row.engine]} {metadata.version(PACKAGES[row.engine])}" if row.engine in PACKAGES else None,
    }


def _words(engine: Engine, settings: Settings, row: Row) -> dict[str, Any]:
    """Word error rate and time of the whole set; twice as many recordings are open as windows fit a batch."""
    recordings = recordings_of(row.data)[: row.limit]
    with Transcriber(settings, engine=engine) as transcriber:

        def hear(path: Path, words: bool, language: str | None) -> Heard:
            return Heard(transcriber.submit(path, GREEDY).result().text)

        _warm_up(engine, row.batch, Decoding(language=GREEDY.language), read_samples(recordings[0].path))
        listen(hear, Set(row.data, recordings[: 2 * row.batch]), together=2 * row.batch, tick=lambda: None)
        heard = listen(hear, Set(row.data, recordings), together=2 * row.batch, tick=lambda: None)
    errors = scores.errors([one.text for one in recordings], [one.text for one in heard.heard], GREEDY.language)
    return {
        "recordings": errors["recordings"],
        "words": errors["words"],
        "wer": errors["wer"],
        "wer_normalized": errors["whisper_normalizer"]["wer"],
        "failed": len(heard.failures),
        "failures": heard.failures[:3],
        "audio_seconds": round(sum(one.seconds for one in recordings), 2),
        "seconds": round(heard.seconds, 3),
        "cpu_seconds": round(heard.cpu_seconds, 3),
    }


def _warm_up(engine: Engine, batch: int, decoding: Decoding, samples: Samples) -> None:
    """Batches of 1, 2, 4, … windows, and the largest: what is compiled, allocated or tried out for each size is done then."""
    window = Window(samples[:WINDOW_SAMPLES], 0.0, decoding)
    for size in sorted({*(1 << power for power in range(batch.bit_length())), batch}):
        engine.decode([window] * size)


def _speed(engine: Engine, row: Row) -> dict[str, Any]:
    """Time of whole windows, `TOKENS` decoded from each. Raises RuntimeError when an engine decodes another number."""
    decoding = Decoding(language="en", ignore_eot=True, max_tokens=TOKENS)
    speech = read_samples(long_recording(120))
    step = SAMPLE_RATE * 10
    each = [Window(speech[i % 9 * step :][:WINDOW_SAMPLES], 0.0, decoding) for i in range(row.batch + max(row.windows, row.batch))]
    engine.decode(each[: row.batch])
    began, cpu = time.perf_counter(), time.process_time()
    found = [one for i in range(row.batch, len(each), row.batch) for one in engine.decode(each[i : i + row.batch])]
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu
    if {len(one.tokens) for one in found} != {TOKENS}:
        raise RuntimeError(f"{TOKENS} tokens were to be decoded from every window; it was {sorted({len(one.tokens) for one in found})}")
    audio = {"windows": len(found), "tokens": TOKENS, "audio_seconds": len(found) * WINDOW_SECONDS}
    return audio | {"seconds": round(seconds, 3), "cpu_seconds": round(cpu_seconds, 3)}


def recordings_of(data: str) -> list[Recording]:
    """heldout, a manifest, LibriSpeech's layout, or a folder with a .txt beside each sound. Raises ConfigurationError."""
    return datasets.manifest(datasets.HELDOUT) if data == "heldout" else datasets.of(Path(data))


def disk_mb(settings: Settings, described: dict[str, Any]) -> float:
    """The size of what the engine reads, MB: the checkpoint too where PyTorch encodes for CTranslate2."""
    read = {artifact(settings)} | ({locate(settings)} if str(described.get("encoder")).startswith("torch") else set())
    return round(sum(file.stat().st_size for path in read for file in _files(path)) / 1e6, 1)


def artifact(settings: Settings) -> Path:
    """The checkpoint, or the folder made from it for the engine."""
    device = choose_device(settings)
    if settings.engine == "ct2":
        from whispercore.checkpoints.conversion import precision

        return ct2_folder(settings, locate(settings), precision(settings, device))
    if settings.engine in ("onnx", "sherpa"):
        from whispercore.checkpoints.onnx_export import precision as exported

        return exported_folder(settings, settings.engine, exported(settings, device if settings.engine == "onnx" else "cpu"))
    return locate(settings)


def _files(path: Path) -> list[Path]:
    return [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]


def peak_rss_mb() -> float:
    """The most that this process ever held resident, MB of 1,000,000 bytes (Linux: VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return round(next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e6, 1)


@contextmanager
def gpu_memory(device: str) -> Iterator[Callable[[], float | None]]:
    """The most of the GPU's memory that was taken meanwhile, beyond what was before, MB; None without a GPU.

    Asked of the device, whatever the runtime: an allocator's own counters exist in PyTorch only. Nothing else may use the GPU.
    """
    if device != "cuda":
        yield lambda: None
        return
    before, ended = _gpu_taken(), threading.Event()
    most = before

    def watch() -> None:
        nonlocal most
        while not ended.wait(SAMPLE_EVERY_SECONDS):
            most = max(most, _gpu_taken())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield lambda: round((most - before) / 1e6, 1)
    finally:
        ended.set()
        watcher.join()


def _gpu_taken() -> int:
    free, total = torch.cuda.mem_get_info()
    return int(total - free)


def apart(row: Row, timeout: float) -> dict[str, Any]:
    """The figures of a row from a process of its own, or {"failure": why there are none}."""
    try:
        checkpoints.prepare(row.settings)  # not there: it would count as the engine's memory
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
    ended = f"killed by signal {-done.returncode}, 9 where memory ran out" if done.returncode < 0 else f"status {done.returncode}"
    return {"failure": f"its process ended with {ended}: {last[:200]}"}


def _environment(row: Row) -> dict[str, str]:
    """JAX would take most of a GPU's memory at once, whatever it needs."""
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    mine = {"PYTHONPATH": path, "OMP_NUM_THREADS": str(row.threads), "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    return {name: value for name, value in os.environ.items() if not name.startswith("WHISPER_")} | mine


def run(rows: Sequence[Row], folder: Path, *, again: bool, timeout: float, console: Console) -> list[dict[str, Any]]:
    """Measure what is not in engines.json yet, keeping each row as soon as it is there; all rows there are."""
    origin = results.provenance()
    known: list[dict[str, Any]] = (results.load(folder, "engines") or {"result": {"rows": []}})["result"]["rows"]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("engines", total=len(rows))
        try:
            for row in rows:
                progress.update(task, description=f"{row.model} {row.engine} {engines_table.precision(row.named)} batch {row.batch}")
                if again or not any(_is(one, row) and "failure" not in one for one in known):
                    figures = row.named | {"measured": _when(), **apart(row, timeout)}
                    known = [one for one in known if not _is(one, row)] + [figures]
                    _keep(folder, origin, known)
                    progress.console.print(engines_table.line(figures), soft_wrap=True)
                progress.advance(task)
        except KeyboardInterrupt:
            progress.console.print("engines: stopped; the rows that are done are kept")
    return known


def _is(known: dict[str, Any], row: Row) -> bool:
    return all(known.get(name, False) == value for name, value in row.named.items())


def _when() -> dict[str, Any]:
    now = results.provenance()
    return {name: now[name] for name in ("date", "commit", "dirty", "load_average", "machine")}


def _keep(folder: Path, origin: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """In a stable order, whatever order they were measured in."""
    order = sorted(rows, key=lambda row: (row["data"] == "random", row["data"], row["model"], row["batch"]))
    results.save(folder, "engines", origin, {"baseline": " ".join(engines_table.BASELINE), "tokens": TOKENS}, {"rows": order})


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0; 1 when a row failed or was not reached, 2 when what was asked for is not there."""
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
    found = run(rows, folder, again=arguments.again, timeout=arguments.timeout, console=console)
    console.print(f"engines: {folder / 'engines.json'}; {engines_table.plot(folder, found)}")
    if folder == results.RESULTS:
        engines_table.update()
    print(json.dumps(results.load(folder, "engines"), indent=1) if arguments.json else engines_table.table(folder))
    mine = [one for one in found if any(_is(one, row) for row in rows)]
    return 0 if len(mine) == len(rows) and not any("failure" in one for one in mine) else 1


def chosen(arguments: argparse.Namespace) -> list[Row]:
    """Every configuration asked for, the words first. Raises ConfigurationError."""
    if unknown := [name for name in arguments.engines if name not in ENGINES]:
        raise ConfigurationError(f"unknown engine '{unknown[0]}'; known: {', '.join(ENGINES)}", param="engines")
    if arguments.words:
        recordings_of(arguments.data)
    for size in arguments.sizes:
        checkpoints.dimensions(size)
    models = [(model, arguments.data) for model in arguments.model * arguments.words] + [(size, "random") for size in arguments.sizes]
    given = partial(Row, device=arguments.device, threads=arguments.threads)
    for model, data in models:
        locate(given(model=model, data=data, engine="openai", precision="auto", batch=1).settings)
    device = choose_device(Settings(device=arguments.device))
    kinds = [
        {"engine": engine, "precision": precision, "compiled": compiled}
        for engine in arguments.engines
        for precision in arguments.precisions or _precisions(engine, device)
        for compiled in (False, True)[: 1 + (arguments.compile and engine == "torch")]
    ]
    amounts = {True: {"windows": arguments.windows}, False: {"limit": arguments.limit}}
    return [
        given(model=model, data=data, batch=batch, **kind, **amounts[data == "random"])
        for (model, data), batch, kind in itertools.product(models, arguments.batch, kinds)
    ]


def _precisions(engine: str, device: str) -> tuple[str, ...]:
    """All that the engine computes in; auto for one that is not installed, whose row will say so."""
    try:
        return precisions(engine, device)
    except ConfigurationError:
        return ("auto",)


def _child(row: Row, out: Path) -> int:
    """Measure, or say why not."""
    try:
        figures = measure(row)
    except Exception as error:
        figures = {"failure": reason(error)}
    out.with_suffix(".part").write_text(json.dumps(figures))
    out.with_suffix(".part").rename(out)
    return 0


def _standard(arguments: argparse.Namespace) -> bool:
    """Whether these are rows that the README shows: on recordings that everybody has."""
    usual = vars(_parser().parse_args([]))
    return all(getattr(arguments, name) == usual[name] for name in ("model", "data", "limit"))


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
        help="dtypes of the settings; default: all that each engine computes in on the device",
    )
    which.add_argument(
        "--batch", nargs="+", type=int, default=list(BATCHES), metavar="N", help="windows decoded together at most; default: 1 8"
    )
    which.add_argument("--compile", action="store_true", help="engine torch by torch.compile, too")
    which.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    which.add_argument("--threads", type=int, default=1, help="CPU threads of the engine; default: 1")
    work = parser.add_argument_group("work")
    work.add_argument("--model", nargs="+", default=["nano"], help="checkpoints, by name or path; default: the bundled one")
    work.add_argument("--data", default="heldout", help="LibriSpeech/test-clean, a folder, a manifest; default: the held-out set")
    work.add_argument("--limit", type=int, metavar="N", help="the first N recordings only")
    work.add_argument("--words", action=argparse.BooleanOptionalAction, default=True, help="recordings; --no-words: random weights only")
    work.add_argument("--sizes", nargs="*", default=list(SIZES), help="shapes of random weights, for speed; default: base; nothing: none")
    work.add_argument("--windows", type=int, default=WINDOWS, metavar="N", help="of random weights; default: 8, at least one batch")
    parser.add_argument("--again", action="store_true", help="measure what has been measured already, too")
    parser.add_argument("--timeout", type=float, default=3600.0, help="seconds after which a row is given up; default: an hour")
    parser.add_argument(
        "--results", type=Path, metavar="DIR", help="where engines.json is kept (default: bench/results, of other data build/)"
    )
    parser.add_argument("--json", action="store_true", help="print the results as JSON, not as a table")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
