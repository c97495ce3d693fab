#!/usr/bin/env bash
# Choices before SFT, on LLaVA's way, without captioning: 600 steps of SFT behind each connector.
# Writes results/choices/.
#
#   placed, mlp, linear      the projector: two maps that also know the place of a patch (our
#                            default), two maps, one map
#   no_connector             SFT without a connector stage before it
#   few, few_no_connector    150 steps of SFT, with the connector stage and without
#   young, young_no_...      600 steps, behind a language model of 200 steps instead of 1,100
#   thousand, thousand_no_... 300 steps on a thousand dialogues; the best weights are measured
#   frozen, frozen_no_...    the language model is frozen in SFT, too: the projector learns alone
#   layer1, layer3           the last layer of the ViT, the last but two; our default is the last
#                            but one
#   eyes, random             the ViT learns, too; it has never learned before (no stage 1)
source "$(dirname "$0")/common.sh"

way() {  # name, seed, options of the connector stage, options of SFT; each a list of words
    local run="$runs/$1-seed$2"
    $python train_align.py --clip "$from/clip" --lm "$from/lm" --seed "$2" --out "$run/align" $3
    $python train_sft.py --init "$run/align" --steps 600 --seed "$2" --out "$run/sft" $4
    measure "$run/sft" "$1-seed$2"
}
random() {  # seed
    $python train_clip.py --steps 0 --seed "$1" --out "$runs/random-seed$1/clip"
    way random "$1" "--clip $runs/random-seed$1/clip" --no-freeze_vit
}
young() {  # seed
    local lm="$runs/young-seed$1/lm"
    $python train_lm.py --steps 200 --seed "$1" --out "$lm"
    way young "$1" "--lm $lm" ""
    way young_no_connector "$1" "--lm $lm --steps 0" ""
}

few_dialogues="--split choices_1000 --steps 300 --eval_every 50 --noise 0.1"
frozen="--freeze_gpt --n_texts 0"
head -n 1000 $data/train.jsonl > $data/choices_1000.jsonl

for seed in $seeds; do
    beside placed$seed way placed $seed "" ""
    beside no_connector$seed way no_connector $seed "--steps 0" ""
    beside mlp$seed way mlp $seed "--projector mlp" ""
    beside linear$seed way linear $seed "--projector linear" ""
    beside eyes$seed way eyes $seed "" "--no-freeze_vit"
    beside random$seed random $seed
    beside young$seed young $seed
    for layer in 1 3; do
        beside layer$layer$seed way layer$layer $seed "--feature_layer -$layer" ""
    done
    beside few$seed way few $seed "" "--steps 150"
    beside few_no_connector$seed way few_no_connector $seed "--steps 0" "--steps 150"
    beside thousand$seed way thousand $seed "" "$few_dialogues"
    beside thousand_no_connector$seed way thousand_no_connector $seed "--steps 0" "$few_dialogues"
    beside frozen$seed way frozen $seed "" "$frozen"
    beside frozen_no_connector$seed way frozen_no_connector $seed "--steps 0" "$frozen"
done
all_done
