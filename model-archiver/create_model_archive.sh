#!/usr/bin/env bash
# Builds whisper.mar into a folder, unless the one there was made from the same sources: the only way it is made.
#
#   model-archiver/create_model_archive.sh [FOLDER]     (default: model-store)
#
# The archive carries code and configuration only. Weights stay outside, so it is small, and one archive serves every model.
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# Not whispercore's version: it is a part of every URL (/predictions/whisper/1.0/v1/audio/transcriptions) and must outlive releases.
API_VERSION=1.0

core() { (cd "$ROOT/src" && find whispercore -name '.*' -prune -o \( -name '*.py' -o -name py.typed \) -print); }

fingerprint() {
    local sources
    mapfile -t sources < <(core | sed 's,^,src/,' | LC_ALL=C sort)
    (cd "$ROOT" && sha256sum "${sources[@]}" handler/whisper_handler.py config/model-config.yaml model-archiver/create_model_archive.sh) |
        sha256sum | cut -d' ' -f1
}

build() {
    local stage=$1 files
    mapfile -t files < <(core)
    # --extra-files copies a folder's children: the package must be one.
    mkdir "$stage/extra" "$stage/out"
    (cd "$ROOT/src" && cp --parents --no-preserve=mode "${files[@]}" "$stage/extra")
    torch-model-archiver --model-name whisper --version "$API_VERSION" \
        --handler "$ROOT/handler/whisper_handler.py" --config-file "$ROOT/config/model-config.yaml" \
        --extra-files "$stage/extra" --export-path "$stage/out"
}

main() {
    local folder=${1:-$ROOT/model-store} wanted stage
    wanted=$(fingerprint)
    if [[ -f $folder/whisper.mar && $(cat "$folder/whisper.mar.sources" 2>/dev/null) == "$wanted" ]]; then
        return
    fi
    command -v torch-model-archiver >/dev/null || {
        echo "create_model_archive.sh: torch-model-archiver is not on the PATH: run ./serve.sh --setup, and activate its environment" >&2
        exit 1
    }
    mkdir -p "$folder"
    stage=$(mktemp -d)
    # shellcheck disable=SC2064 # the folder as it is now
    trap "rm -rf '$stage'" EXIT
    build "$stage"
    mv "$stage/out/whisper.mar" "$folder/whisper.mar"
    echo "$wanted" >"$folder/whisper.mar.sources"
}

main "$@"
