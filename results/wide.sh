#!/usr/bin/env bash
# How should a wide picture be made square? CLIP on wide scenes that are cropped, padded or stretched.
# Writes results/wide/.
source "$(dirname "$0")/common.sh"

learn() {  # how, seed
    local run="$runs/$1-seed$2"
    $python train_clip.py --data "${data}_$1" --steps 300 --eval_every 300 --seed "$2" --out "$run"
    measure "$run" "$1-seed$2" --data "${data}_$1"
}

once pictures $python results/wide.py
for seed in $seeds; do
    for fit in crop pad stretch; do beside $fit-$seed learn $fit $seed; done
done
all_done
