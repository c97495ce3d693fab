#!/usr/bin/env bash
# Installs into .venv what tests/parity compares with; ./test.sh then runs it too.
set -euo pipefail
cd "$(dirname "$0")/../.."
source venv.sh
pip="$python -m pip install --quiet --disable-pip-version-check -c constraints.txt"
$pip -e '.[parity]'
$pip --no-deps -r tests/parity/peers.txt
