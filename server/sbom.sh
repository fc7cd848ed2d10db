#!/usr/bin/env bash
# Prints the software bill of materials of an image: the Python packages in it with versions and licences, as CycloneDX JSON.
#
#   server/sbom.sh IMAGE >sbom.json
#
# It is made from what is installed in the image, not from the requirements files. Debian's packages are not in it. Needs docker or podman.
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# cyclonedx-bom, of this machine, is added to its own search path only: the interpreter that it inspects must not see it.
PROGRAM='import sys, runpy; sys.path.insert(0, "/sbom"); sys.argv[0] = "cyclonedx-py"; runpy.run_module("cyclonedx_py", run_name="__main__")'

# The first of docker and podman that has the image.
engine_with() {
    local engine
    for engine in docker podman; do
        if "$engine" image inspect "$1" >/dev/null 2>&1; then
            echo "$engine"
            return
        fi
    done
    return 1
}

main() {
    local image=${1:?the name of an image} engine tools
    engine=$(engine_with "$image") || { echo "sbom.sh: neither docker nor podman has the image $image" >&2; exit 1; }
    tools=$(mktemp -d)
    # shellcheck disable=SC2064 # $tools as it is now
    trap "rm -rf '$tools'" EXIT
    python3 -m venv "$tools"
    "$tools/bin/python" -m pip install --quiet --disable-pip-version-check "$(grep '^cyclonedx-bom' "$ROOT/requirements-release.txt")" >&2
    chmod -R a+rX "$tools"
    "$engine" run --rm --network none --no-healthcheck --volume "$(echo "$tools"/lib/python3*/site-packages):/sbom:ro" --entrypoint python3 "$image" \
        -c "$PROGRAM" environment --output-format JSON --output-reproducible --no-validate /opt/venv
}

main "$@"
