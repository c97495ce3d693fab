#!/usr/bin/env bash
# Every test, on a fresh machine too. Arguments go to pytest: ./test.sh -k losses
set -euo pipefail
cd "$(dirname "$0")"
source venv.sh
exec "$python" -m pytest "$@"
