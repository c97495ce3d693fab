#!/usr/bin/env bash
# Stage 4 by DPO, compared with PPO on five axes (3 seeds): DPO; DPO with a pool of chatbots and a
# judge (Silkie); PPO with a reward model that is told facts (LLaVA-RLHF). Then, with seed 0 alone:
# the judge's error rate, the losses of the family, further rounds, and LoRA. Needs the runs and
# rankings of results/preferences.sh; writes results/dpo/.
set -euo pipefail
cd "$(dirname "$0")/.."
source venv.sh
data=data/book/prepared out=results/dpo
mkdir -p $out

measure() {  # run, name of the result, seed
    $python evaluate.py --run "$1" --no-blind --axes ${4:-} --out "$1/eval.json"
    cp "$1/eval.json" "$out/$2-seed$3.json"
}
beside() { measure "runs/seed$2/$1" "$1" "$2" "--against runs/seed$2/sft"; }
dpo() {  # name, seed, options
    $python train_dpo.py --init runs/seed$2/sft --out "runs/seed$2/$1" --seed "$2" \
        --split preferences_seed${2}_pairs --val_split preferences_seed${2}_val_pairs "${@:3}"
    beside "$1" "$2"
}
rank() {  # name, runs, seed, options
    $python data/preferences.py --run "$2" --seed "$3" --out "$data/$1_seed$3.jsonl" "${@:4}"
}
on() { echo "--split $1_seed${2}_pairs --val_split $1_seed${2}_val_pairs"; }

for seed in ${SEEDS:-0 1 2}; do
    measure runs/seed$seed/sft sft $seed
    beside ppo $seed
    dpo dpo $seed
    # the pool: the chatbot of this seed, that of another seed, and this one after PPO
    other=$(((seed + 1) % 3))
    rank silkie runs/seed$seed/sft,runs/seed$other/sft,runs/seed$seed/ppo $seed --rater judge-sim
    dpo silkie $seed $(on silkie $seed)
    $python train_reward.py --facts --split preferences_seed$seed \
        --val_split preferences_seed${seed}_val --init runs/seed$seed/sft \
        --out runs/seed$seed/reward_facts --seed $seed
    $python train_ppo.py --init runs/seed$seed/sft --reward runs/seed$seed/reward_facts \
        --out runs/seed$seed/ppo_facts --seed $seed --eval_every 10
    cp runs/seed$seed/reward_facts/metrics.csv results/preferences/reward_facts-seed$seed.csv
    beside ppo_facts $seed
done
if [ -n "${MORE-yes}" ]; then
    for error in 0 2 4 8; do  # tenths
        rank judge$error "" 0 --answers $data/preferences_seed0.jsonl \
            --rater judge-sim --error_rate 0.$error
        dpo judge$error 0 $(on judge$error 0)
    done
    dpo plain 0 --no-average --changed 1 --beta 0.3
    dpo cdpo 0 --label_smoothing 0.2
    dpo ipo 0 --kind ipo
    dpo lora 0 --lora 8 --lr 1e-3
    for round in 2 3; do
        before=$([ $round = 2 ] && echo dpo || echo dpo2)
        rank round$round runs/seed0/$before 0
        dpo dpo$round 0 --init runs/seed0/$before $(on round$round 0)
    done
    $python results/feedback.py
fi
