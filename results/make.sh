#!/usr/bin/env bash
# Measure every number of the README anew: the speedrun with three seeds, captioning, the ablation, the
# data engine, stage 4, NLVR, CIFAR-10. Takes about eight hours on two CPU cores. NLVR_SOURCE and
# CIFAR10_SOURCE name the corpora; a part without its corpus is left out.
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p results/shapes results/nlvr
for seed in 0 1 2; do
    ./speedrun.sh --until sft --seed $seed --out runs/seed$seed
    for stage in clip sft; do cp "runs/seed$seed/$stage/eval.json" "results/shapes/$stage-seed$seed.json"; done
    for stage in lm clip caption align sft; do cp "runs/seed$seed/$stage/metrics.csv" "results/shapes/$stage-seed$seed.csv"; done
done
results/captions.sh
results/ablation.sh
results/instruct.sh
results/preferences.sh
results/dpo.sh
if [ -n "${NLVR_SOURCE:-}" ]; then
    ./speedrun.sh --data nlvr --source "$NLVR_SOURCE"
    for stage in clip sft; do cp "runs/nlvr/$stage/eval.json" "results/nlvr/$stage-seed0.json"; done
    source venv.sh
    $python data/instruct.py --data data/nlvr/prepared --n 3000
    $python results/sample.py data/nlvr/prepared
fi
source venv.sh
if [ -n "${CIFAR10_SOURCE:-}" ]; then
    data=data/cifar10/prepared run=runs/cifar10/clip
    mkdir -p results/cifar10
    $python data/cifar10/prepare.py --source "$CIFAR10_SOURCE" --out $data
    $python train_clip.py --data $data --out $run --patch_size 4 --batch_size 128 --shift 4 --mirror --steps 1200 --eval_every 300
    $python evaluate.py --run $run --data $data --out results/cifar10/clip-seed0.json
    mv results/cifar10/clip-seed0.answers.jsonl $run/eval.answers.jsonl
    $python results/confusion.py $run results/cifar10/confusion.png
fi
$python results/figure.py runs/seed0/sft
$python results/tables.py --write
