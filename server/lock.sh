#!/usr/bin/env bash
# Writes locks/: for every requirements file a list of the exact versions of all packages that it needs, directly or not, with the hashes of
# their files. `WHISPER_LOCKED=1 ./serve.sh` installs from them.
#
#   server/lock.sh              the newest versions that the requirements files allow; needs uv (pip install uv) and the package index
#   server/lock.sh --keep       keeps the locked versions where the requirements files still allow them
#
# The locks are for Linux and Python 3.11, which the container image has. A package has the same version in all of them, so several can be
# installed into one environment. PyTorch, Triton and NVIDIA's libraries are left out: which build of them is right depends on the device,
# PyTorch's index of CPU builds has other files than the package index, and setup.sh pins PyTorch's version.
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=server/setup.sh
source "$ROOT/server/setup.sh"

# A resolution of these requirements files on standard output.
resolve() {
    uv pip compile --quiet --no-header --no-annotate --python-version "$LOCKED_PYTHON" --python-platform linux --constraints "$PINS" "$@"
}

# The names of packages whose build depends on the device, in a resolution on standard input.
device_packages() { sed -n 's/^\(torch\|triton\|nvidia-[^=]*\|cuda-[^=]*\)==.*/\1/p'; }

main() {
    local files file folder skipped
    command -v uv >/dev/null || fail "no uv: pip install uv"
    cd "$ROOT"
    mapfile -t files < <(git ls-files --cached --others --exclude-standard 'requirements*.txt' '*/requirements*.txt')
    folder=$(mktemp -d)
    # shellcheck disable=SC2064 # $folder as it is now
    trap "rm -rf '$folder'" EXIT
    PINS=$folder/pins.txt
    echo "torch==$TORCH_VERSION" >"$PINS"
    [[ ${1:-} != --keep ]] || cat locks/*.txt | sed -n 's/^\([^ ]*==[^ ]*\).*/\1/p' | sort -u >"$folder/all.txt"
    echo "$JAVA_PACKAGE" >"$folder/java.txt"
    resolve --output-file "$folder/all.txt" "${files[@]}" "$folder/java.txt"
    cat "$folder/all.txt" >>"$PINS"
    mapfile -t skipped < <(device_packages <"$folder/all.txt")
    rm -rf locks && mkdir locks
    for file in "${files[@]}" "$folder/java.txt"; do
        resolve --generate-hashes "${skipped[@]/#/--no-emit-package=}" "$file" >"$(lock_of "${file#"$folder"/}")"
    done
    say "locked $(wc -l <"$folder/all.txt") packages for ${#files[@]} requirements files in locks/"
}

main "$@"
