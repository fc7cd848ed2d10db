"""The release workflow: what runs before an image is pushed, how it is labelled, and what may write."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[3]
FLOW: dict[Any, Any] = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text())
JOBS: dict[str, dict[str, Any]] = FLOW["jobs"]


def using(job: str, action: str) -> dict[str, Any]:
    """The inputs of a job's step that uses this action."""
    (step,) = [step for step in JOBS[job]["steps"] if step.get("uses", "").partition("@")[0] == action]
    inputs: dict[str, Any] = step["with"]
    return inputs


def commands(job: str) -> str:
    return "\n".join(step.get("run", "") for step in JOBS[job]["steps"])


def test_it_runs_for_tags_of_versions_only() -> None:
    assert FLOW[True] == {"push": {"tags": ["v*"]}}, "YAML 1.1 reads the key `on` as true"


def test_nothing_is_pushed_before_the_tests_have_passed() -> None:
    assert JOBS["image"]["needs"] == ["test", "image-test"] and JOBS["release"]["needs"] == "image"
    assert ".ci/run" in commands("test") and "WHISPER_IMAGE_TESTS=1 ./test.sh tests/image" in commands("image-test")


def test_the_tag_must_be_the_version() -> None:
    from whispercore import __version__

    pattern = r"sed -n 's/\^(.+) = .*' (\S+)\)"
    found = re.search(pattern, commands("test"))
    assert found and f'{found[1]} = "{__version__}"\n' in (ROOT / found[2]).read_text()


def test_actions_are_pinned_and_from_their_makers() -> None:
    for job in JOBS.values():
        for step in job["steps"]:
            if "uses" in step:
                assert re.fullmatch(r"(actions|docker)/[a-z-]+@v\d+", step["uses"])


def test_both_images_are_built_from_the_lock_files_with_every_label() -> None:
    assert JOBS["image"]["strategy"]["matrix"] == {"device": ["cpu", "gpu"]}
    given = dict(line.split("=", 1) for line in using("image", "docker/build-push-action")["build-args"].split("\n") if line)
    assert given["LOCKED"] == "1" and given["DEVICE"] == "${{ matrix.device }}"
    declared = re.findall(r"^ARG (\w+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert {"VERSION", "REVISION", "CREATED", "SOURCE"} < given.keys() <= set(declared)


def test_the_images_of_cpus_have_tags_of_their_own() -> None:
    flavor = using("image", "docker/metadata-action")["flavor"]
    assert "suffix=${{ matrix.device == 'cpu' && '-cpu' || '' }},onlatest=true" in flavor


def test_each_image_has_a_bill_of_materials_that_the_release_carries() -> None:
    assert "server/sbom.sh" in commands("image") and ".cdx.json" in commands("release")
    assert using("image", "actions/upload-artifact")["name"] == "sbom-${{ matrix.device }}"
    assert using("release", "actions/download-artifact")["pattern"] == "sbom-*"


def test_a_job_may_write_only_what_it_publishes() -> None:
    assert FLOW["permissions"] == {"contents": "read"}
    assert {name: job["permissions"] for name, job in JOBS.items() if "permissions" in job} == {
        "image": {"contents": "read", "packages": "write"},
        "release": {"contents": "write"},
    }
