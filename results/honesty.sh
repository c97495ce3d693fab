#!/usr/bin/env bash
# Saying "not sure": the chatbot is probed, and tuned on what it knows (sft); then Dr. GRPO, with an
# admission worth .75 where a right answer is worth 1. With the first seed alone also Dr. GRPO with
# .8 and .85, GRPO with .8, DPO and PPO, with raters that prefer an admission to a false answer and
# a right answer to an admission. All begin with one chatbot. Writes results/honesty/.
source "$(dirname "$0")/common.sh"

both() {  # run, name of the result
    measure "$1" "$2" --questions sight --n_questions 1000 --no-describe
    measure "$1" "skills_$2"
}
asking="--split sight_prompts --val_split sight_prompts_val"  # used without quotes
honest() {  # seed
    $python train_sft.py --init "$from/sft" --split honest --val_split honest_val --steps 600 \
        --muon_lr 0.005 --lr 5e-4 --out "$runs/sft-seed$1" --seed "$1"
    both "$runs/sft-seed$1" "sft-seed$1"
}
grpo() {  # name, seed, reward of an admission, advantage
    $python train_grpo.py --init "$runs/sft-seed$2" $asking --unsure "$3" --advantage "$4" --alpha 0.5 \
        --n_copies 8 --steps 60 --out "$runs/$1-seed$2" --seed "$2"
    both "$runs/$1-seed$2" "$1-seed$2"
}
rank() {  # seed
    $python data/preferences.py --run "$runs/sft-seed$1" --questions sight_prompts --seed "$1" \
        --out $data/honest_rankings.jsonl
    $python train_reward.py --init "$runs/sft-seed$1" --split honest_rankings \
        --val_split honest_rankings_val --out "$runs/reward-seed$1" --seed "$1"
}
ppo() {  # seed
    $python train_ppo.py --init "$runs/sft-seed$1" --reward "$runs/reward-seed$1" $asking \
        --out "$runs/ppo-seed$1" --seed "$1"
    both "$runs/ppo-seed$1" "ppo-seed$1"
}
dpo() {  # seed
    $python train_dpo.py --init "$runs/sft-seed$1" --split honest_rankings_pairs \
        --val_split honest_rankings_val_pairs --out "$runs/dpo-seed$1" --seed "$1"
    both "$runs/dpo-seed$1" "dpo-seed$1"
}

once probe $python data/probe.py --run "$from/sft" --n 10000 --least 0.6
beside before both "$from/sft" before-seed0
for seed in $seeds; do beside sft$seed honest $seed; done
all_done
for seed in $seeds; do beside dr_grpo75-$seed grpo dr_grpo75 $seed 0.75 dr_grpo; done
seed=${seeds%% *}
beside dr_grpo8 grpo dr_grpo8 $seed 0.8 dr_grpo
beside dr_grpo85 grpo dr_grpo85 $seed 0.85 dr_grpo
beside rank rank $seed
beside grpo8 grpo grpo8 $seed 0.8 grpo
all_done
beside ppo ppo $seed
beside dpo dpo $seed
all_done
$python results/honesty.py
