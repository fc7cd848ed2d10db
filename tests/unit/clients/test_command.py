"""The console command `whispercore` that `pip install` makes: its entry point, packages and subcommands."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
CLIENTS = ROOT / "clients"
sys.path.insert(0, str(CLIENTS))

import command  # noqa: E402

PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def run(*arguments: str, flags: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """The command as its entry point calls it."""
    call = f"import sys; sys.path.insert(0, {str(CLIENTS)!r}); import command; sys.exit(command.main())"
    return subprocess.run([sys.executable, *flags, "-c", call, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_the_entry_point_exists() -> None:
    (target,) = re.findall(r'^\[project\.scripts\]\nwhispercore = "(.+)"$', PYPROJECT, re.MULTILINE)
    package, _, function = target.partition(":")
    folder, _, module = package.partition(".")
    assert re.search(rf'^package-dir = .*\b{folder} = "clients"', PYPROJECT, re.MULTILINE)
    assert (CLIENTS / f"{module}.py").is_file() and callable(getattr(command, function))


def test_the_installed_packages_are_all_of_the_source() -> None:
    (listed,) = re.findall(r"^packages = \[(.+?)\]", PYPROJECT, re.MULTILINE | re.DOTALL)
    folders = {path.parent.relative_to(ROOT / "src") for path in (ROOT / "src").rglob("*.py")}
    assert set(re.findall(r'"(.+?)"', listed)) == {".".join(folder.parts) for folder in folders} | {"whispercore_clients"}


@pytest.mark.parametrize("name", command.SUBCOMMANDS)
def test_a_subcommand_has_its_own_help(name: str) -> None:
    done = run(name, "--help")
    assert done.returncode == 0 and done.stdout.startswith(f"usage: whispercore {name} "), done.stderr


def test_the_subcommands_are_listed() -> None:
    done = run("--help")
    assert done.returncode == 0 and all(f"\n  {name} " in done.stdout for name in command.SUBCOMMANDS)
    for arguments, message in (([], "a subcommand is missing"), (["play"], "unknown subcommand 'play'")):
        done = run(*arguments)
        assert done.returncode == 2 and done.stderr.endswith(f"error: {message}\n")


def test_every_subcommand_is_a_function_of_a_client() -> None:
    for target, _ in command.SUBCOMMANDS.values():
        module, _, function = target.partition(".")
        assert f"\ndef {function}(" in (CLIENTS / f"{module}.py").read_text(encoding="utf-8")


def test_no_server_is_one_clear_line() -> None:
    done = run("transcribe", "samples/timer.flac", "--url", "http://127.0.0.1:9/predictions/whisper")
    assert done.returncode == 1
    assert (
        done.stderr.startswith("samples/timer.flac: no server at http://127.0.0.1:9/predictions/whisper: ") and done.stderr.count("\n") == 1
    )


def test_a_missing_package_is_one_clear_line() -> None:
    done = run("transcribe", "samples/timer.flac", flags=("-S",))
    assert done.returncode == 1
    assert done.stderr == "error: whispercore transcribe needs the package requests: pip install whispercore\n"
