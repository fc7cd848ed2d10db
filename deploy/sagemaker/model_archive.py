"""Makes model.tar.gz: weights, and for AWS's own containers the inference script with the core.

The same inputs give the same bytes: members are sorted, and have no times and no owners.
"""

from __future__ import annotations

import gzip
import os
import re
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from io import BytesIO
from pathlib import Path
from typing import Literal

from deploy.sagemaker.failure import DeployError

Form = Literal["container", "pytorch", "huggingface"]
"""Which image serves the archive: this repository's own, AWS's for PyTorch, or AWS's for Hugging Face."""

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).parent / "code" / "inference.py"
_WEIGHTS = ("model.bin", "*.safetensors", "*coder*.onnx")
"""The files by which a folder of weights is recognized: CTranslate2's, Hugging Face's, ONNX graphs."""
_COMPRESSION = 1
"""Weights hardly shrink, and a higher level takes minutes for a large model."""
_NOT_INSTALLED = ("torch", "openai-whisper")
"""Requirements that pip need not install in AWS's image. It has PyTorch in a build of its own. openai-whisper is packed into the archive:
pip would first have to build it, and on a CPU fetch triton, 1 GB that is not used there."""


def build(weights: Path, output: Path, form: Form) -> int:
    """Write the archive, complete or not at all. Returns its size in bytes.

    `weights`: a .pt file, or a folder in Hugging Face's or CTranslate2's form or of ONNX graphs. Raises DeployError
    when it is none of these, is cut short, or cannot be read, and when `output` cannot be written.
    """
    _check(weights)
    members = dict(_members(weights, form))
    try:
        with tempfile.NamedTemporaryFile(dir=output.parent, prefix=f".{output.name}-", delete=False) as file:
            temporary = Path(file.name)
            try:
                with gzip.GzipFile("", "wb", _COMPRESSION, file, mtime=0) as packed, tarfile.open(fileobj=packed, mode="w|") as archive:
                    for name in sorted(members):
                        _add(archive, name, members[name])
                file.flush()
                temporary.chmod(0o644)
                temporary.replace(output)
            finally:
                temporary.unlink(missing_ok=True)
    except OSError as error:
        raise DeployError(f"{output} cannot be written ({error.strerror or error}): free some space, or choose another --archive") from None
    return output.stat().st_size


def requirements() -> str:
    """The archive's code/requirements.txt: what the core needs and AWS's image does not have."""
    kept = [line for line in _requirements() if re.split("[<>=~!]", line)[0] not in _NOT_INSTALLED]
    return "\n".join(kept) + "\n"


def _requirements() -> list[str]:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def _members(weights: Path, form: Form) -> Iterator[tuple[str, Path | bytes]]:
    """Each member's name in the archive, and its file or its content."""
    if weights.is_file():
        yield weights.name, weights
    else:
        yield from ((f"{weights.name}/{path.relative_to(weights)}", path) for path in _files(weights))
    if form == "container":
        return
    yield "code/inference.py", SCRIPT
    yield "code/requirements.txt", requirements().encode()
    core = ROOT / "src" / "whispercore"
    yield from ((f"code/whispercore/{path.relative_to(core)}", path) for path in _files(core))
    yield "code/LICENSE", ROOT / "LICENSE"
    yield from ((f"code/{name}", path) for name, path in _openai_whisper())


def _openai_whisper() -> Iterator[tuple[str, Path]]:
    """The files of the package that is installed here, and its licence. Raises DeployError when it is another version."""
    wanted = next(line for line in _requirements() if line.startswith("openai-whisper=="))
    try:
        package = distribution("openai-whisper")
        installed = f"openai-whisper=={package.version}"
    except PackageNotFoundError:
        installed = "none"
    if installed != wanted:
        python = "serve.sh's Python (build/venv/bin/python)"
        raise DeployError(f"the archive needs {wanted}, here is {installed}: run this with {python}, or pip install --no-deps {wanted}")
    for file in package.files or ():
        if file.suffix != ".pyc" and (file.parts[0] == "whisper" or file.name == "LICENSE"):
            yield "whisper/LICENSE" if file.name == "LICENSE" else str(file), Path(str(file.locate()))


def _files(folder: Path) -> Iterator[Path]:
    """The files in the folder, without compiled and hidden ones. Links into a cache of the Hub's count as their files."""
    for path in folder.rglob("*"):
        hidden = any(part.startswith(".") or part == "__pycache__" for part in path.relative_to(folder).parts)
        if path.is_file() and not hidden:
            yield path


def _add(archive: tarfile.TarFile, name: str, content: Path | bytes) -> None:
    member = tarfile.TarInfo(name)
    member.mode = 0o644
    if isinstance(content, bytes):
        member.size = len(content)
        archive.addfile(member, BytesIO(content))
        return
    with content.open("rb") as file:
        member.size = os.fstat(file.fileno()).st_size
        archive.addfile(member, file)


def _check(weights: Path) -> None:
    """Find in seconds what would otherwise make the endpoint fail after minutes that cost money."""
    if weights.is_dir():
        if not any(any(weights.glob(pattern)) for pattern in _WEIGHTS):
            raise DeployError(f"{weights} is no folder of weights: it has no {', '.join(_WEIGHTS)}; name the folder with these files")
        return
    if not weights.is_file():
        raise DeployError(f"no weights at {weights}: python3 clients/download_model.py NAME fetches some and prints their path")
    if weights.suffix != ".pt":
        raise DeployError(f"{weights} is neither a .pt file nor a folder: name the folder that it is in")
    if not zipfile.is_zipfile(weights):
        raise DeployError(f"{weights} is no checkpoint, or is cut short: fetch it again with clients/download_model.py")
