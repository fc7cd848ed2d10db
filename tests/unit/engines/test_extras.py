"""What the engines need besides requirements.txt: one pip extra and one requirements file each, which serve.sh installs by itself."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from whispercore.catalogue import ENGINES, EXTRAS
from whispercore.engines import load_engine
from whispercore.errors import ConfigurationError
from whispercore.settings import Settings

ROOT = Path(__file__).resolve().parents[3]
FILES = sorted(ROOT.glob("requirements*.txt"))
IMPORTED = {name: ENGINES[name].module for name in (*EXTRAS, "ct2")}
"""For each engine that may lack its package, the name under which it imports it."""


def wanted(path: Path) -> list[Requirement]:
    lines = (line.partition(" #")[0].strip() for line in path.read_text().splitlines())
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def test_every_engine_has_an_extra_and_a_file_of_its_name() -> None:
    extras = dict(re.findall(r'^(\w+) = \{ file = \["(.+)"\] \}$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE))
    assert set(EXTRAS) <= set(ENGINES)
    assert [extras[name] for name in EXTRAS] == [f"requirements-{name}.txt" for name in EXTRAS]
    assert {path.name for path in FILES} - {"requirements.txt", "requirements-release.txt"} <= set(extras.values())


@pytest.mark.parametrize("name", EXTRAS)
def test_what_an_engine_needs_is_bounded_on_both_sides_and_here(name: str) -> None:
    for requirement in wanted(ROOT / f"requirements-{name}.txt"):
        assert {each.operator for each in requirement.specifier} == {">=", "<"}, requirement
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            pytest.skip(f"{requirement.name} is not installed: pip install -r requirements-{name}.txt")
        assert requirement.specifier.contains(installed), f"the tests run with {requirement.name} {installed}"


def test_files_that_name_a_package_agree_about_it() -> None:
    named: dict[str, set[str]] = {}
    for path in FILES:
        for requirement in wanted(path):
            if requirement.name in {each.name for name in EXTRAS for each in wanted(ROOT / f"requirements-{name}.txt")}:
                named.setdefault(requirement.name, set()).add(str(requirement.specifier))
    assert named and all(len(specifiers) == 1 for specifiers in named.values()), named


@pytest.mark.parametrize(("name", "package"), IMPORTED.items())
def test_a_missing_package_is_an_error_that_names_the_extra(name: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [module for module in sys.modules if module.startswith(f"whispercore.engines.{name}") or module.endswith("_export")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.delitem(sys.modules, "whispercore.checkpoints.conversion", raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    how = f"requirements-{name}.txt, or pip install '.[{name}]'" if name in EXTRAS else f"pip install {package}"
    with pytest.raises(ConfigurationError) as caught:
        load_engine(Settings(engine=name, device="cpu"))
    assert how in caught.value.message and caught.value.param == "engine"


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """A virtual environment whose pip writes down what it is to install."""
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\necho "$@" >>"{tmp_path}/installed"\n')
    python.chmod(0o755)
    (tmp_path / ".requirements").write_text("torch\n")
    return tmp_path


def set_up(environment: Path, root: Path = ROOT, **variables: str) -> str:
    """What serve.sh lets pip install for the engine, in these environment variables."""
    (environment / "installed").write_text("")
    script = 'source "$SETUP" && use_engine'
    told = {"PATH": "/usr/bin:/bin", "VIRTUAL_ENV": str(environment), "ROOT": str(root), "SETUP": str(ROOT / "server" / "setup.sh")}
    subprocess.run(["bash", "-euo", "pipefail", "-c", script, "serve.sh"], env=told | variables, check=True, capture_output=True)
    return (environment / "installed").read_text()


@pytest.mark.parametrize("name", EXTRAS)
def test_serve_installs_what_the_engine_needs_once(environment: Path, name: str) -> None:
    assert f"--requirement={ROOT}/requirements-{name}.txt" in set_up(environment, WHISPER_ENGINE=name)
    assert set_up(environment, WHISPER_ENGINE=name) == ""
    assert set_up(environment, WHISPER_ENGINE="ct2") == "", "another engine takes nothing away"
    (environment / ".requirements").write_text("another torch\n")
    assert f"requirements-{name}.txt" in set_up(environment, WHISPER_ENGINE=name), "the environment has been made anew"


def test_an_environment_of_the_users_own_is_left_alone(environment: Path) -> None:
    assert set_up(environment, WHISPER_ENGINE="jax", WHISPER_VENV=str(environment)) == ""


@pytest.mark.parametrize("name", ["auto", "torch", "openai", "fake", "test", "caffe"])
def test_others_need_nothing(environment: Path, name: str) -> None:
    assert set_up(environment, WHISPER_ENGINE=name) == ""


def test_the_engine_may_stand_in_the_configuration(environment: Path, tmp_path: Path) -> None:
    root = tmp_path / "checkout"
    (root / "config").mkdir(parents=True)
    (root / "config" / "model-config.yaml").write_text("batchSize: 1\nwhisper:\n  model: nano\n  engine: onnx  # approved\n")
    (root / "requirements-onnx.txt").write_text("onnx\n")
    assert "requirements-onnx.txt" in set_up(environment, root)
    assert set_up(environment, root, WHISPER_ENGINE="torch") == "", "the environment wins"
