#!/usr/bin/env bash
# SigLIP's loss beside InfoNCE's: the same 51,200 pairs in batches of 32, 128 and 512. Writes
# results/siglip/*.json and figure.png.
source "$(dirname "$0")/common.sh"

learn() {  # loss, pairs a batch, seed
    local run="$runs/$1-$2-seed$3" steps=$((51200 / $2))
    $python train_clip.py --loss "$1" --batch_size "$2" --steps $steps --warmup $((steps / 10)) \
        --eval_every $steps --seed "$3" --out "$run"
    measure "$run" "$1-$2-seed$3"
}

for seed in $seeds; do
    for batch in 32 128 512; do
        for loss in infonce siglip; do beside $loss-$batch-$seed learn $loss $batch $seed; done
    done
done
all_done
$python results/siglip.py
