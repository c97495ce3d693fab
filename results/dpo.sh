#!/usr/bin/env bash
# DPO from people's rankings (simulated), the speedrun's. Writes results/dpo/. With all seeds:
#
#   dpo, gray       as by default; the same pairs with every picture gray
#
# With the first seed alone:
#
#   plain, cdpo, ipo, kto   others of the family; plain is DPO as first published
#   plain_1, ipo_half, kto_20   the same with other beta: .1, .5 and 20
#   lora                    adapters alone learn
#   pictures                also from pairs that differ in the picture alone
#   judge0 ... judge8       a judge ranks the same answers; 0, 20, 40, 80 % of its ratings are guesses
#   ppo                     the speedrun's, beside them
#   silkie                  a judge ranks the answers of two chatbots, SFT's and PPO's
#   round2, round3          the last policy's answers are ranked, and it is the reference
source "$(dirname "$0")/common.sh"
gray=data/book/prepared_gray

without_pictures() {
    mkdir -p $gray
    cp $data/meta.json $data/tokenizer.tiktoken $data/{train,val}.jsonl $data/preferences*.jsonl \
        $data/prompts*.jsonl $gray
    $python -c "
import numpy as np
pictures = np.load('$data/train.npy', mmap_mode='r')
np.save('$gray/train.npy', np.full_like(pictures, 127))"
}
sft() {
    mkdir -p "$runs/sft"
    $python evaluate.py --run "$from/sft" --no-blind --axes --out "$runs/sft/eval.json"
    cp "$runs/sft/eval.json" "$out/sft-seed0.json"
}
dpo() {  # name, seed, options
    $python train_dpo.py --init "$from/sft" --out "$runs/$1-seed$2" --seed "$2" "${@:3}"
    measure "$runs/$1-seed$2" "$1-seed$2" --axes --against "$runs/sft"
}
ranked() {  # name, seed, words that tell data/preferences.py whose answers to rank and how
    $python data/preferences.py --seed "$2" --out "$data/dpo_$1.jsonl" $3
    dpo "$1" "$2" --split "dpo_$1_pairs" --val_split "dpo_$1_val_pairs" "${@:4}"
}
rounds() {  # seed
    ranked round2 "$1" "--run $runs/dpo-seed$1" --init "$runs/dpo-seed$1"
    ranked round3 "$1" "--run $runs/round2-seed$1" --init "$runs/round2-seed$1"
}

once sft sft
once without_pictures without_pictures
for seed in $seeds; do
    beside dpo$seed dpo dpo $seed
    beside gray$seed dpo gray $seed --data $gray
done
all_done
seed=${seeds%% *}
beside ppo measure "$from/ppo" ppo-seed0 --axes --against "$runs/sft"
beside plain dpo plain $seed --no-average --changed 1 --beta 0.3
beside cdpo dpo cdpo $seed --label_smoothing 0.2
beside ipo dpo ipo $seed --kind ipo
beside kto dpo kto $seed --kind kto
beside plain_1 dpo plain_1 $seed --no-average --changed 1 --beta 0.1
beside ipo_half dpo ipo_half $seed --kind ipo --beta 0.5
beside kto_20 dpo kto_20 $seed --kind kto --beta 20
beside lora dpo lora $seed --lora 8 --lr 1e-3
beside pictures dpo pictures $seed --picture_coef 1
for error in 0 2 4 8; do
    answers="--answers $data/preferences.jsonl --rater judge-sim --error_rate 0.$error"
    beside judge$error ranked judge$error $seed "$answers"
done
beside silkie ranked silkie $seed "--run $from/sft,$from/ppo --rater judge-sim"
beside rounds rounds $seed
all_done
$python results/feedback.py
