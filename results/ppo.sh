#!/usr/bin/env bash
# How far do PPO's figures move from seed to seed and from machine to machine? Five seeds with one
# thread, which rounds as another machine would, and three with two threads, from one chatbot and one
# reward model, those of RUNS: runs/seed0 of results/make.sh, or RUNS=runs for those of ./speedrun.sh.
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
trap 'kill $(jobs -p) 2>/dev/null' EXIT
set -- ${SEEDS:-0 1 2 3 4}
while [ $# -gt 0 ]; do  # two at a time, a thread each
    ppo 1 "$1" & one=$!
    two=""
    [ $# = 1 ] || { ppo 1 "$2" & two=$!; }
    wait $one $two
    shift; [ $# = 0 ] || shift
done
if [ -n "${MORE-yes}" ]; then
    for seed in 0 1 2; do ppo 2 $seed; done
fi
