"""Accuracy: every engine and strategy of ours beside openai-whisper and faster-whisper, on the same recordings, in one run.

python -m bench accuracy         the bundled model on its held-out set; then the tables in ../docs/measured.md
python bench/accuracy.py --dataset librispeech --root LibriSpeech/test-clean --model large-v3-turbo
python bench/accuracy.py --root FOLDER --rows ct2:chunked:int8 faster-whisper:batched:int8
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # started as a file: its folder is on the path, and the package is not
    sys.path[0:1] = [str(Path(__file__).resolve().parent.parent / part) for part in ("", "src")]

import argparse
import itertools
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench import datasets, plot, results, scores, table
from bench.datasets import Recording
from bench.peers import Hear, Heard, Row, Setup, open_runner
from bench.work import ROOT, SCRATCH
from whispercore import checkpoints
from whispercore.errors import ConfigurationError, WhisperError

ROWS = (
    "openai-whisper:sequential:float32",
    "openai:sequential:float32",
    "openai:chunked:float32",
    "torch:chunked:float32",
    "faster-whisper:sequential:float32",
    "ct2:sequential:float32",
    "faster-whisper:sequential:int8",
    "faster-whisper:batched:int8",
    "ct2:sequential:int8",
    "ct2:chunked:int8",
    "ct2:chunked:int8@8",
)
MAX_ERRORS = 3
"""Messages of failed recordings that a row keeps; all are counted."""

Tick = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Sets:
    """What every row hears: speech, sounds without speech, and speech whose word times are known."""

    name: str
    speech: list[Recording]
    quiet: list[Recording]
    words: list[Recording]

    def __len__(self) -> int:
        return len(self.speech) + len(self.quiet) + len(self.words)


@dataclass(frozen=True, slots=True)
class Pass:
    """What a runner heard in some recordings, nothing where it failed; wall and processor seconds it took."""

    heard: list[Heard]
    failures: list[str]
    seconds: float
    cpu_seconds: float


def listen(hear: Hear, recordings: Sequence[Recording], *, words: bool, together: int, tick: Tick) -> Pass:
    """All recordings, `together` of them open at any time."""
    failures: list[str] = []

    def attempt(recording: Recording) -> Heard:
        try:
            return hear(recording.path, words)
        except Exception as error:  # a peer may raise anything: it is the row's result, and no reason to stop
            failures.append(f"{recording.path.name}: {reason(error)}")
            return Heard("")
        finally:
            tick()

    began, cpu = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(together) as pool:
        heard = list(pool.map(attempt, recordings))
    return Pass(heard, failures, time.perf_counter() - began, time.process_time() - cpu)


def reason(error: Exception) -> str:
    """The first line of an error, without this checkout's path in it."""
    line = (str(error) or "no message").splitlines()[0].replace(f"{ROOT}/", "")
    return line if isinstance(error, WhisperError) else f"{type(error).__name__}: {line}"


def measure(row: Row, setup: Setup, sets: Sets, tick: Tick) -> tuple[dict[str, Any], list[Heard]]:
    """A row's figures and what it heard of the speech. One recording before the clock starts warms it up."""
    with open_runner(row, setup) as hear:
        listen(hear, sets.speech[:1], words=False, together=1, tick=lambda: None)
        speech = listen(hear, sets.speech, words=False, together=row.together, tick=tick)
        quiet = listen(hear, sets.quiet, words=False, together=row.together, tick=tick)
        words = listen(hear, sets.words, words=True, together=row.together, tick=tick)
    figures = {
        "speech": scores.errors([one.text for one in sets.speech], [one.text for one in speech.heard], setup.language)
        | _cost(speech, sets.speech),
        "quiet": scores.made_up([one.text for one in quiet.heard]) | _cost(quiet, sets.quiet) if sets.quiet else None,
        "words": scores.word_times([one.words for one in sets.words], [one.words for one in words.heard]) | _failed(words)
        if sets.words
        else None,
    }
    return figures, speech.heard


def _cost(heard: Pass, recordings: Sequence[Recording]) -> dict[str, Any]:
    audio = sum(_seconds(recording) for recording in recordings)
    spent = {"seconds": round(heard.seconds, 3), "cpu_seconds": round(heard.cpu_seconds, 3)}
    return {"audio_seconds": round(audio, 2)} | spent | {"rtfx": round(audio / heard.seconds, 2)} | _failed(heard)


def _failed(heard: Pass) -> dict[str, Any]:
    return {"failed": len(heard.failures), "failures": heard.failures[:MAX_ERRORS]}


def _seconds(recording: Recording) -> float:
    """0 for what cannot be read: every runner will say so."""
    try:
        return recording.seconds
    except (WhisperError, OSError):
        return 0.0


def run(rows: Sequence[Row], setups: Sequence[Setup], sets: Sets, console: Console) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Every row on every checkpoint, and what each heard in each recording of speech."""
    found: list[dict[str, Any]] = []
    texts: list[dict[str, str]] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        try:
            for setup, row in itertools.product(setups, rows):
                task = progress.add_task(f"{setup.model} {row}", total=len(sets))
                figures, heard = attempt(row, setup, sets, partial(progress.advance, task))
                found.append(figures)
                texts += _texts(figures, sets.speech, heard)
                progress.remove_task(task)
                progress.console.print(table.accuracy_line(figures), soft_wrap=True)
        except KeyboardInterrupt:
            progress.console.print("accuracy: stopped; the rows that are done are kept")
    return found, texts


def attempt(row: Row, setup: Setup, sets: Sets, tick: Tick) -> tuple[dict[str, Any], list[Heard]]:
    """A row's name and figures, or why it has none: what one cannot load must not take the others' rows."""
    named = asdict(row) | {"row": str(row), "model": setup.name}
    try:
        figures, heard = measure(row, setup, sets, tick)
    except Exception as error:
        return named | {"failure": reason(error)}, []
    return named | figures, heard


def _texts(named: dict[str, Any], recordings: Sequence[Recording], heard: Sequence[Heard]) -> list[dict[str, str]]:
    of_row = {name: named[name] for name in ("row", "model")}
    return [of_row | {"audio": str(one.path), "text": one.text, "heard": it.text} for one, it in zip(recordings, heard, strict=False)]


def choose(arguments: argparse.Namespace) -> Sets:
    """The sets that are asked for. Raises ConfigurationError."""
    known = {"librispeech": datasets.librispeech, "folder": datasets.folder}
    if arguments.manifest:
        name, speech = arguments.manifest.stem, datasets.manifest(arguments.manifest)
    elif arguments.root:
        kind = "folder" if arguments.dataset == "heldout" else arguments.dataset
        name, speech = f"{kind} {arguments.root.name}", known[kind](arguments.root)
    elif arguments.dataset == "heldout":
        name, speech = "heldout", datasets.manifest(datasets.HELDOUT)
    else:
        raise ConfigurationError(f"--dataset {arguments.dataset} needs --root PATH", param="root")
    quiet = datasets.quiet() if arguments.quiet else []
    words = datasets.manifest(arguments.words) if arguments.word_times else []
    return Sets(name, *(recordings[: arguments.limit] for recordings in (speech, quiet, words)))


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0; 1 when a row failed or was not reached, 2 when what was asked for is not there."""
    arguments = _parser().parse_args(argv)
    console = Console(stderr=True, highlight=False)
    try:
        rows, sets, setups = [Row.parse(text) for text in arguments.rows], choose(arguments), _setups(arguments)
    except ConfigurationError as error:
        console.print(f"[red]accuracy:[/red] {error}")
        return 2
    origin = results.provenance()
    with _core_silent():
        found, texts = run(rows, setups, sets, console)
    reached = len(found) == len(rows) * len(setups)
    folder = (arguments.results or (results.RESULTS if reached and _standard(arguments) else SCRATCH / "accuracy")).resolve()
    _keep(folder, origin, _settings(sets, setups), found, texts, console)
    content = results.load(folder, "accuracy")
    assert content is not None
    print(json.dumps(content, indent=1) if arguments.json else table.accuracy(folder))
    return 0 if reached and not any("failure" in row for row in found) else 1


@contextmanager
def _core_silent() -> Iterator[None]:
    """Without the core's log: what failed is in the rows."""
    logger = logging.getLogger("whispercore")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _keep(
    folder: Path,
    origin: dict[str, Any],
    settings: dict[str, Any],
    found: list[dict[str, Any]],
    texts: list[dict[str, str]],
    console: Console,
) -> None:
    """The JSON, the plot, what was heard (not among the committed results), and the tables of docs/measured.md."""
    path = results.save(folder, "accuracy", origin, settings, {"rows": found})
    console.print(f"accuracy: {path}")
    console.print(f"accuracy: {plot.save(folder, found)}")
    if folder == results.RESULTS:
        table.update_accuracy()
    SCRATCH.mkdir(parents=True, exist_ok=True)
    heard = SCRATCH / "accuracy-heard.jsonl"
    heard.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in texts), encoding="utf-8")
    console.print(f"accuracy: {heard}, what each row heard in each recording")


def _settings(sets: Sets, setups: Sequence[Setup]) -> dict[str, Any]:
    one = asdict(setups[0])
    del one["model"]
    models = {setup.name: checkpoints.sha256(checkpoints.locate(setup.located)) for setup in setups}
    return {"dataset": sets.name, "models": models} | one


def _setups(arguments: argparse.Namespace) -> list[Setup]:
    language = None if arguments.language == "none" else arguments.language
    setup = Setup(
        device=arguments.device,
        threads=arguments.threads,
        language=language,
        beam_size=arguments.beam_size,
        condition_on_previous_text=arguments.condition_on_previous_text,
    )
    setups = [replace(setup, model=model) for model in arguments.model]
    for one in setups:
        checkpoints.locate(one.located)
    return setups


def _standard(arguments: argparse.Namespace) -> bool:
    """Whether this is the measurement that docs/measured.md shows."""
    usual = vars(_parser().parse_args([]))
    return all(value == usual[name] for name, value in vars(arguments).items() if name not in ("json", "results"))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench accuracy", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    data = parser.add_argument_group("recordings")
    data.add_argument("--dataset", choices=("heldout", "folder", "librispeech"), default="heldout", help="default: heldout, bundled")
    data.add_argument("--root", type=Path, help="the folder: audio with .txt beside it, or LibriSpeech's layout with --dataset librispeech")
    data.add_argument("--manifest", type=Path, help="instead: .jsonl, .json, .csv or .tsv with the columns audio and text")
    data.add_argument("--limit", type=_positive, help="only the first so many of each set")
    data.add_argument("--no-quiet", dest="quiet", action="store_false", help="leave out silence, noise and tones")
    data.add_argument("--no-words", dest="word_times", action="store_false", help="leave out word times")
    data.add_argument(
        "--words",
        type=Path,
        default=datasets.WORDS,
        metavar="MANIFEST",
        help="a set with true word times: python -m bench.espeak makes one",
    )
    how = parser.add_argument_group("how")
    how.add_argument("--rows", nargs="+", default=list(ROWS), metavar="ROW", help="RUNNER[:MODE[:COMPUTE_TYPE]][@TOGETHER]; see below")
    how.add_argument("--model", nargs="+", default=["nano"], help="names in whisper-models/ or paths of checkpoints; default: nano")
    how.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    how.add_argument("--threads", type=_positive, default=1, help="for decoding; default: 1")
    how.add_argument("--language", default="en", help="ISO code, none: detected; default: en")
    how.add_argument("--beam-size", type=_positive, help="default: greedy")
    how.add_argument("--condition-on-previous-text", action=argparse.BooleanOptionalAction, default=True)
    out = parser.add_argument_group("results")
    out.add_argument("--results", type=Path, metavar="DIR", help="default: build/bench/accuracy; without other options bench/results")
    out.add_argument("--json", action="store_true", help="print the results as JSON, not as a table")
    parser.epilog = "rows, as they are by default:\n  " + "\n  ".join(ROWS)
    return parser


def _positive(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


if __name__ == "__main__":
    sys.exit(main())
