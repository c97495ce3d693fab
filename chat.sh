#!/usr/bin/env bash
# Talk to a chatbot in the browser, on a fresh machine too. Arguments go to serve.py:
# ./chat.sh --port 8001
set -euo pipefail
cd "$(dirname "$0")"
source venv.sh
exec "$python" serve.py --open "$@"
