#!/usr/bin/env bash
# How far do PPO's figures move from seed to seed and from machine to machine? Five seeds with one
# thread, and with two threads, which round as another machine would. All have one chatbot and one
# reward model. Writes results/ppo/.
source "$(dirname "$0")/common.sh"

ppo() {  # threads, seed
    local run="$runs/$1-seed$2"
    $python train_ppo.py --init "$from/sft" --reward "$from/reward" --out "$run" --threads "$1" --seed "$2"
    measure "$run" "$1-seed$2" --threads 1
}

once sft measure "$from/sft" sft-seed0 --threads 1
for seed in ${SEEDS:-0 1 2 3 4}; do beside 1-$seed ppo 1 $seed; done
all_done
for seed in ${SEEDS:-0 1 2 3 4}; do once 2-$seed ppo 2 $seed; done
