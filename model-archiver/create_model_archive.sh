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

sources() {
    cd "$ROOT"
    find src/whispercore -type f -not -path '*/__pycache__/*' -print
    printf '%s\n' handler/whisper_handler.py config/model-config.yaml model-archiver/create_model_archive.sh
}

fingerprint() {
    (cd "$ROOT" && sources | LC_ALL=C sort | tr '\n' '\0' | xargs -0 sha256sum | sha256sum | cut -d' ' -f1)
}

build() {
    local stage=$1
    # --extra-files copies a folder's children: the package must be one.
    mkdir -p "$stage/extra" "$stage/out"
    cp -R "$ROOT/src/whispercore" "$stage/extra/whispercore"
    find "$stage/extra" -name __pycache__ -type d -prune -exec rm -rf {} +
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
