#!/usr/bin/env bash
# Rebuild every number of the README: the speedrun with three seeds, the ablation, NLVR.
# About 75 minutes on two CPU cores. NLVR_SOURCE names the corpus; without it that part is left out.
set -euo pipefail
cd "$(dirname "$0")/.."
for seed in 0 1 2; do
    ./speedrun.sh --seed $seed
    for stage in clip sft; do
        mkdir -p results/shapes
        cp "runs/$stage/eval.json" "results/shapes/$stage-seed$seed.json"
    done
done
results/ablation.sh
if [ -n "${NLVR_SOURCE:-}" ]; then
    ./speedrun.sh --data nlvr --source "$NLVR_SOURCE"
    mkdir -p results/nlvr
    for stage in clip sft; do cp "runs/nlvr/$stage/eval.json" "results/nlvr/$stage-seed0.json"; done
fi
source venv.sh
$python results/tables.py
