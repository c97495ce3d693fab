#!/usr/bin/env bash
# Rebuild every number of the README: the speedrun with three seeds, the ablation, NLVR.
# About 90 minutes on two CPU cores. NLVR_SOURCE names the corpus; without it that part is left out.
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p results/shapes results/nlvr
for seed in 0 1 2; do
    ./speedrun.sh --seed $seed --out runs/seed$seed
    for stage in clip sft; do cp "runs/seed$seed/$stage/eval.json" "results/shapes/$stage-seed$seed.json"; done
    for stage in lm clip align sft; do cp "runs/seed$seed/$stage/metrics.csv" "results/shapes/$stage-seed$seed.csv"; done
done
results/ablation.sh
if [ -n "${NLVR_SOURCE:-}" ]; then
    ./speedrun.sh --data nlvr --source "$NLVR_SOURCE"
    for stage in clip sft; do cp "runs/nlvr/$stage/eval.json" "results/nlvr/$stage-seed0.json"; done
fi
source venv.sh
$python results/figure.py runs/seed0/sft
$python results/tables.py --write
