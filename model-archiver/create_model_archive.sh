#!/usr/bin/env bash
# Builds whisper.mar into a folder, unless the archive there was built from the same sources. whisper.mar is built in no other way.
#
#   model-archiver/create_model_archive.sh [FOLDER]     (default: model-store)
#
# The archive holds code and configuration only. Weights stay outside, so the archive is small and the same for every model.
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
MANIFEST=MAR-INF/MANIFEST.json

fail() { echo "$*" >&2; exit 1; }

# Part of every URL (/predictions/whisper/1.0/v1/audio/transcriptions). It is not whispercore's version, which changes with each release.
api_version() { sed -n 's/^API_VERSION = "\(.*\)"$/\1/p' "$ROOT/src/whispercore/torchserve/handshake.py"; }

core() { (cd "$ROOT/src" && find whispercore -name '.*' -prune -o \( -name '*.py' -o -name py.typed -o -path '*/silero_vad_v6/*' \) -print); }

# The files that belong into the archive, as sha256sum prints them: hash and name in the archive. The manifest is not among them.
expected() {
    local files
    mapfile -t files < <(core)
    {
        (cd "$ROOT/src" && sha256sum "${files[@]}")
        (cd "$ROOT/handler" && sha256sum whisper_handler.py)
        (cd "$ROOT/config" && sha256sum model-config.yaml)
    } | LC_ALL=C sort
}

# The same for the files that an archive holds. It is unpacked in FOLDER, an empty one: Python imports from the current folder, too.
contained() {
    local archive=$1 folder=$2
    (cd "$folder" && python3 -m zipfile --extract "$archive" .) &&
        (cd "$folder" && find . -type f ! -path "./$MANIFEST" -printf '%P\0' | xargs -0 sha256sum) | LC_ALL=C sort
}

fingerprint() {
    { expected && sha256sum <"$ROOT/model-archiver/create_model_archive.sh"; } | sha256sum | cut -d' ' -f1
}

is_current() { [[ -f $1/whisper.mar && $(cat "$1/whisper.mar.sources" 2>/dev/null) == "$2" ]]; }

# Locks the folder itself until this process ends, so that only one build at a time runs in it.
lock() {
    local lock
    command -v flock >/dev/null || return 0
    exec {lock}<"$1"
    flock "$lock"
}

# Makes the archive in STAGE/out. torch-model-archiver collects the files in $TMPDIR/whisper and removes that folder first. In /tmp two
# builds would remove each other's files, and other users could add theirs; so STAGE, which only this user can read, is its TMPDIR.
build() {
    local stage=$1 files
    mapfile -t files < <(core)
    # --extra-files copies what is in a folder, not the folder itself: the package lies one level deeper.
    mkdir "$stage/extra" "$stage/out" "$stage/temporary" "$stage/contents"
    (cd "$ROOT/src" && cp --parents --no-preserve=mode "${files[@]}" "$stage/extra")
    TMPDIR=$stage/temporary torch-model-archiver --model-name whisper --version "$(api_version)" \
        --handler "$ROOT/handler/whisper_handler.py" --config-file "$ROOT/config/model-config.yaml" \
        --extra-files "$stage/extra" --export-path "$stage/out"
}

# Ends when the archive is not complete, or holds a file that does not belong into it, or one with other contents.
check() {
    local stage=$1 different
    contained "$stage/out/whisper.mar" "$stage/contents" >"$stage/contained" || 
        fail "create_model_archive.sh: the new archive cannot be read: run this again"
    different=$(LC_ALL=C comm -3 "$stage/expected" "$stage/contained" | awk '{ print $2 }' | sort -u)
    [[ -f $stage/contents/$MANIFEST ]] || different="$MANIFEST $different"
    [[ -z $different ]] ||
        fail "create_model_archive.sh: the new archive lacks these files, or has others in their place, and is not used:" \
            "${different//$'\n'/ }; run this again"
}

main() {
    local folder=${1:-$ROOT/model-store} sources stage
    sources=$(fingerprint)
    ! is_current "$folder" "$sources" || return 0
    command -v torch-model-archiver >/dev/null ||
        fail "create_model_archive.sh: torch-model-archiver is not on the PATH: run ./serve.sh --setup, and activate its environment"
    mkdir -p "$folder"
    folder=$(cd "$folder" && pwd)
    lock "$folder"
    sources=$(fingerprint)
    ! is_current "$folder" "$sources" || return 0
    # In the folder itself, so that the finished archive is moved within one file system: in one step.
    stage=$(mktemp -d "$folder/.build.XXXXXX")
    # shellcheck disable=SC2064 # $stage as it is now
    trap "rm -rf '$stage'" EXIT
    expected >"$stage/expected"
    build "$stage"
    check "$stage"
    rm -f "$folder/whisper.mar.sources"
    mv "$stage/out/whisper.mar" "$folder/whisper.mar"
    echo "$sources" >"$folder/whisper.mar.sources"
}

main "$@"
