#!/usr/bin/env bash
# How far do PPO's figures move from seed to seed and from machine to machine? Five seeds with one
# thread, which rounds as another machine would, and three with two threads, from one chatbot and one
# reward model. Needs data/book/prepared and the runs of ./speedrun.sh (RUNS, by default runs/seed0).
# Writes results/ppo/.
set -euo pipefail
cd "$(dirname "$0")/.."
source venv.sh
from="${RUNS:-runs/seed0}" out=results/ppo
mkdir -p $out

measure() {  # run, name of the result
    $python evaluate.py --run "$1" --no-blind --threads 1 --out "$out/$2.json"
    rm "$out/$2.answers.jsonl"
}
ppo() {  # threads, seed
    local run="runs/ppo_seeds/$1-seed$2"
    $python train_ppo.py --init "$from/sft" --reward "$from/reward" --out "$run" --threads "$1" --seed "$2"
    measure "$run" "$1-seed$2"
}

measure "$from/sft" sft-seed0
for seed in 0 2 4; do  # two at a time
    ppo 1 $seed & one=$!
    [ $seed = 4 ] || ppo 1 $((seed + 1))
    wait $one
done
for seed in 0 1 2; do ppo 2 $seed; done
