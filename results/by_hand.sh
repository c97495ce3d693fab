#!/usr/bin/env bash
# The loop of docs/rlhf_by_hand.md, with a scripted person: 50 and 200 rankings, made on the page,
# and a reward model and DPO from them. Writes results/by_hand/.
source "$(dirname "$0")/common.sh"

rankings() {  # and pairs of them for DPO; a tenth is held out
    rm -f $data/scripted.jsonl
    $python results/person.py "$from/sft" 200 scripted "$out/person.json"
    local n
    for n in 50 200; do
        head -n $n $data/scripted.jsonl > $data/scripted_$n.jsonl
        $python data/preferences.py --rater file --ranked $data/scripted_$n.jsonl --n_val $((n / 10)) \
            --out $data/mine_$n.jsonl
    done
}
reward() {  # rankings, seed; measured with those of many people
    local run="$runs/reward_$1-seed$2"
    $python train_reward.py --init "$from/sft" --split "mine_$1" --val_split preferences_val --skip_long \
        --steps 100 --eval_every 25 --out "$run" --seed "$2"
    cp "$run/metrics.csv" "$out/reward_$1-seed$2.csv"
}
dpo() {  # rankings, seed, steps
    local run="$runs/dpo_$1-seed$2"
    $python train_dpo.py --init "$from/sft" --split "mine_$1_pairs" --val_split "mine_$1_val_pairs" \
        --per_question 0 --batch_size 32 --steps "$3" --out "$run" --seed "$2"
    measure "$run" "dpo_$1-seed$2"
}

once rankings rankings
for seed in $seeds; do
    beside reward_50-$seed reward 50 $seed
    beside reward_200-$seed reward 200 $seed
    beside dpo_50-$seed dpo 50 $seed 30
    beside dpo_200-$seed dpo 200 $seed 60
done
all_done
