"""Downloads repositories of the Hugging Face Hub."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import requests
from rich.progress import Progress
from transfer import SHA256_DIGITS, ConnectionCut, DownloadFailed, check, digest, fetch_file, open_url, publish, reason
from verification import write_sums


def fetch_repository(repository: str, target: Path, endpoint: str, pause: float, progress: Progress) -> None:
    """Download a checkpoint's files into the folder `target`, which appears when all are complete and have the Hub's
    hashes.

    `endpoint`: another Hub's address, or empty. `pause`: seconds between attempts. Raises DownloadFailed.
    """
    hub, headers = address(endpoint)
    revision, hashes = _listing(f"{hub}/api/models/{repository}/revision/main", headers)
    part = target.with_name(f".{target.name}.part")
    part.mkdir(exist_ok=True)
    for file, expected in hashes.items():
        if not (part / file).is_file() or digest(part / file, expected, progress) != expected:
            fetch_file(f"{hub}/{repository}/resolve/{revision}/{file}", part / file, expected, pause, progress, headers)
    sums = {file: published if len(published) == SHA256_DIGITS else digest(part / file, "", progress) for file, published in hashes.items()}
    write_sums(part, sums)
    publish(part, target)


def address(endpoint: str) -> tuple[str, dict[str, str]]:
    """The Hub's address, by default that of HF_ENDPOINT, and the header with the user's token, which gated models need."""
    try:
        import huggingface_hub  # here: OpenAI's files work without it
    except ImportError as error:
        raise DownloadFailed(f"the Hugging Face Hub's client is missing ({error}); run: pip install huggingface_hub") from None
    token = huggingface_hub.get_token()
    return (endpoint or huggingface_hub.constants.ENDPOINT).rstrip("/"), {"Authorization": f"Bearer {token}"} if token else {}


def _listing(url: str, headers: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """The repository's revision, and the hashes of the checkpoint's files: SHA-256 for large files, git's for others."""
    try:
        with open_url(f"{url}?blobs=true", headers) as response:
            check(response)
            listing: dict[str, Any] = response.json()
            hashes = {file["rfilename"]: (file.get("lfs") or {}).get("sha256") or file["blobId"] for file in listing["siblings"]}
            return str(listing["sha"]), {name: hashes[name] for name in _needed(hashes, url)}
    except (ConnectionCut, requests.ConnectionError, requests.Timeout) as error:
        raise DownloadFailed(f"{url}: {error if isinstance(error, ConnectionCut) else reason(error)}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise DownloadFailed(f"{url} does not answer as the Hub does ({error}); is --hub right?") from None


def _needed(names: Iterable[str], url: str) -> list[str]:
    """The files to download: weights as safetensors, else as CTranslate2's; configuration and vocabulary."""
    names = [name for name in names if re.fullmatch(r"[\w.-]+", name)]
    shards = [name for name in names if re.fullmatch(r"model-\d+-of-\d+\.safetensors", name)]
    single = [name for name in ("model.safetensors", "model.bin") if name in names]
    weights = single[:1] if "model.safetensors" in single else shards or single
    if not weights:
        raise DownloadFailed(f"{url} names neither safetensors nor a CTranslate2 model.bin: no engine reads what is there")
    index = "model.safetensors.index.json"
    small = [name for name in names if name.endswith((".json", ".txt")) and ".fp32" not in name and (weights == shards or name != index)]
    return [*weights, *small]
