#!/usr/bin/env bash
# Saying "not sure" (3 seeds): the chatbot is probed, and tuned on what it knows; then Dr. GRPO, and
# with seed 0 alone GRPO, DPO and PPO, with raters that prefer an admission to a false answer and a
# right answer to an admission. All seeds begin with one chatbot, that of RUNS: runs/seed0 of
# results/make.sh, or RUNS=runs for that of ./speedrun.sh. Writes results/honesty/.
set -euo pipefail
cd "$(dirname "$0")/.."
source venv.sh
from="${RUNS:-runs/seed0}" data=data/book/prepared out=results/honesty
mkdir -p $out

measure() {  # run, name of the result
    $python evaluate.py --run "$1" --questions sight --n_questions 1000 --no-describe --no-blind \
        --out "$out/$2.json"
    $python evaluate.py --run "$1" --no-blind --out "$out/skills_$2.json"
    rm "$out"/*.answers.jsonl
}

run() { echo "runs/honesty/$1-seed$seed"; }
asking="--split sight_prompts --val_split sight_prompts_val"
rl() {  # name, reward of an admission where it is not right, advantage
    $python train_grpo.py --init "$(run sft)" $asking --unsure "$2" --advantage "$3" --alpha 0.5 \
        --steps 60 --out "$(run "$1")" --seed "$seed"
    measure "$(run "$1")" "$1-seed$seed"
}
for seed in ${SEEDS:-0 1 2}; do
    $python data/probe.py --run "$from/sft" --n 10000 --least 0.6 --seed "$seed"
    [ "$seed" != 0 ] || measure "$from/sft" before-seed0
    $python train_sft.py --init "$from/sft" --split honest --val_split honest_val --steps 600 \
        --muon_lr 0.005 --lr 5e-4 --out "$(run sft)" --seed "$seed"
    measure "$(run sft)" "sft-seed$seed"
    rl dr_grpo8 0.8 dr_grpo
    [ "$seed" = 0 ] && [ -n "${MORE-yes}" ] || continue
    rl dr_grpo9 0.9 dr_grpo
    rl grpo9 0.9 grpo
    $python data/preferences.py --run "$(run sft)" --questions sight_prompts --seed "$seed" \
        --out $data/honest_rankings.jsonl
    ranked="--split honest_rankings --val_split honest_rankings_val"
    $python train_reward.py --init "$(run sft)" $ranked --out "$(run reward)" --seed "$seed"
    $python train_ppo.py --init "$(run sft)" --reward "$(run reward)" $asking --out "$(run ppo)" \
        --seed "$seed"
    measure "$(run ppo)" "ppo-seed$seed"
    $python train_dpo.py --init "$(run sft)" --split honest_rankings_pairs \
        --val_split honest_rankings_val_pairs --out "$(run dpo)" --seed "$seed"
    measure "$(run dpo)" "dpo-seed$seed"
done
$python results/honesty.py
