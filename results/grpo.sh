#!/usr/bin/env bash
# Checked rewards (3 seeds): GRPO from the SFT chatbot; with seed 0 alone RLOO, Dr. GRPO, 2 and 16
# answers to a prompt, RLOO with the reward model, and the best of 16 answers by it. All seeds begin
# with one chatbot, that of RUNS (runs/seed0 of results/make.sh, or RUNS=runs for that of
# ./speedrun.sh), so they tell how far the draws of RL matter. Writes results/grpo/.
set -euo pipefail
cd "$(dirname "$0")/.."
source venv.sh
from="${RUNS:-runs/seed0}" runs=runs/grpo_seeds out=results/grpo
mkdir -p $out

measure() {  # run, name of the result, options
    for questions in eval quiz; do  # in unseen phrasings, and in taught ones
        file=$out/$2.json describe=""
        [ $questions = eval ] || { file=$out/quiz_$2.json; describe=--no-describe; }
        $python evaluate.py --run "$1" --no-blind $describe --questions $questions --out "$file" "${@:3}"
        rm "${file%.json}.answers.jsonl"
    done
}
grpo() {  # name, seed, options
    $python train_grpo.py --init "$from/sft" --out "$runs/$1-seed$2" --seed "$2" "${@:3}"
    cp "$runs/$1-seed$2/metrics.csv" "$out/$1-seed$2.csv"
    measure "$runs/$1-seed$2" "$1-seed$2"
}

measure "$from/sft" sft-seed0
for seed in ${SEEDS:-0 1 2}; do grpo grpo "$seed"; done
if [ -n "${MORE-yes}" ]; then
    grpo rloo 0 --advantage rloo
    grpo dr_grpo 0 --advantage dr_grpo
    grpo rloo_reward 0 --advantage rloo --reward "$from/reward"
    for k in 2 16; do grpo "k$k" 0 --n_copies $k; done
    measure "$from/ppo" ppo-seed0
    measure "$from/sft" best16-seed0 --best_of 16 --reward "$from/reward" --n_questions 60
fi
