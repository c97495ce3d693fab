#!/usr/bin/env bash
# Stage 4 (3 seeds): rankings by a simulated human, reward model, PPO. Then, with seed 0 alone, PPO at
# a higher learning rate: with the KL penalty, without it, and without it but with facts for the
# reward model. Last, PPO of a captioner that was never taught to chat. Writes
# results/preferences/. Needs data/book/prepared and the runs of results/make.sh (runs/seed0/sft, ...,
# runs/seed0/caption).
set -euo pipefail
cd "$(dirname "$0")/.."
source venv.sh
data=data/book/prepared out=results/preferences
mkdir -p $out

measure() {  # run, name of the result
    $python evaluate.py --run "$1" --no-blind --out "$out/$2.json"
    mv "$out/$2.answers.jsonl" "$1/eval.answers.jsonl"
}
reward() {  # name, seed, options
    $python train_reward.py --split preferences_seed$2 --val_split preferences_seed${2}_val \
        --init runs/seed$2/sft --out "runs/seed$2/$1" --seed "$2" "${@:3}"
    cp "runs/seed$2/$1/metrics.csv" "$out/$1-seed$2.csv"
}
ppo() {  # name, seed, options
    $python train_ppo.py --init runs/seed$2/sft --reward runs/seed$2/reward --out "runs/seed$2/$1" \
        --seed "$2" --eval_every 10 "${@:3}"
    cp "runs/seed$2/$1/metrics.csv" "$out/$1-seed$2.csv"
    measure "runs/seed$2/$1" "$1-seed$2"
}

for seed in ${SEEDS:-0 1 2}; do
    $python data/preferences.py --run runs/seed$seed/sft --seed $seed \
        --out $data/preferences_seed$seed.jsonl
    reward reward $seed
    ppo ppo $seed
    measure runs/seed$seed/sft sft-seed$seed
done
if [ -n "${MORE-yes}" ]; then
    # a higher learning rate, so that a policy without the penalty gets far from the reference
    hot="--steps 60 --lr 3e-4"
    ppo hot 0 $hot
    ppo no_kl 0 $hot --kl_coef 0
    reward reward_facts 0 --facts
    ppo no_kl_facts 0 $hot --kl_coef 0 --reward runs/seed0/reward_facts
    ppo ppo_caption 0 --init runs/seed0/caption --max_new_tokens 32 --steps 40  # it does not end its answers
    $python results/rollouts.py runs/seed0/sft
    $python results/overoptimization.py
fi
