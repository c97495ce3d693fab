#!/usr/bin/env bash
# What the captions of stages 1 and 2 leave out, does SFT see it? Of the captions with a size 0, 25 or
# 75 % may tell it; the dialogues of SFT (600 steps) are the usual ones and ask for sizes. In the last
# way, with 0 %, SFT also trains the ViT. Writes results/sizes/.
source "$(dirname "$0")/common.sh"

caption() {  # share of captions with sizes, seed
    local run="$runs/$1-seed$2"
    $python train_clip.py --split "sizes_$1" --steps 300 --seed "$2" --out "$run/clip"
    $python train_caption.py --clip "$run/clip" --lm "$from/lm" --split "sizes_$1" --steps 700 \
        --eval_every 350 --seed "$2" --out "$run/caption"
}
chat() {  # name, share, seed, options of SFT
    local run="$runs/$1-seed$3"
    $python train_sft.py --init "$runs/$2-seed$3/caption" --steps 600 --seed "$3" --out "$run/sft" "${@:4}"
    measure "$run/sft" "$1-seed$3"
}

once variants $python results/variants.py
for seed in $seeds; do
    for share in 0 25 75; do beside caption$share-$seed caption $share $seed; done
done
all_done
for seed in $seeds; do
    for share in 0 25 75; do beside $share-$seed chat $share $share $seed; done
    beside eyes$seed chat eyes 0 $seed --no-freeze_vit
done
all_done
