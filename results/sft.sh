#!/usr/bin/env bash
# Choices within SFT: 600 steps behind the captioner. Writes results/sft/.
#
#   default        as by default
#   eyes           the ViT learns, too
#   yes, no_more   nine of ten yes-or-no questions have the answer yes; 150 more steps with as many of
#                  both
#   answer_first   "Yes: a cup is at the left." instead of "A cup is at the left, so yes."
source "$(dirname "$0")/common.sh"

way() {  # name, seed, options
    local run="$runs/$1-seed$2"
    $python train_sft.py --init "$from/caption" --steps 600 --seed "$2" --out "$run" "${@:3}"
    measure "$run" "$1-seed$2"
}
no_more() {  # seed
    local run="$runs/no_more-seed$1"
    $python train_sft.py --init "$runs/yes-seed$1" --steps 150 --seed "$1" --out "$run"
    measure "$run" "no_more-seed$1"
}

once variants $python results/variants.py
for seed in $seeds; do
    beside default$seed way default $seed
    beside yes$seed way yes $seed --split yes
    beside eyes$seed way eyes $seed --no-freeze_vit
    beside answer_first$seed way answer_first $seed --split answer_first
done
all_done
for seed in $seeds; do beside no_more$seed no_more $seed; done
all_done
