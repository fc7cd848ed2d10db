#!/usr/bin/env bash
# Sets up what is missing and runs the tests: ./test.sh [pytest's arguments], all of them without. The environment is serve.sh's:
# the same variables move it (./serve.sh --help).
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=server/setup.sh
source "$ROOT/server/setup.sh"

choose_state_dir
use_test_environment
cd "$ROOT"
exec python -m pytest "$@"
