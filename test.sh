#!/usr/bin/env bash
# Installs what is missing and runs the tests: ./test.sh [pytest's arguments]; without arguments all of them. It uses the same environment
# and the same variables as serve.sh (./serve.sh --help).
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=server/setup.sh
source "$ROOT/server/setup.sh"

choose_state_dir
use_test_environment
cd "$ROOT"
exec python -m pytest "$@"
