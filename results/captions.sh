#!/usr/bin/env bash
# Captioning: three objectives, what SFT makes of each, and CapFilt. Writes results/captions/.
#
#   blip, lm, prefix_lm   300, 800 and 800 steps: blip, which also trains the ViT, takes as long in
#                         300 as the others in 800
#   sft_<objective>       600 steps of SFT behind each
#   filter                600 steps of blip, and what its captioner and filter do to web captions
#   web, ...              CLIP (200 steps) and lm (300 steps) on web captions, of which 30 % are
#                         noise: as they are; with those left out that do not fit (filtered); with
#                         one written beside each (captioned); with both (capfilt); with both, but
#                         written by beam search in place of sampling (beam)
source "$(dirname "$0")/common.sh"

objective() {  # name, seed, options
    local run="$runs/$1-seed$2"
    $python train_caption.py --clip "$from/clip" --lm "$from/lm" --seed "$2" --eval_every 1000 \
        --objective "$1" --out "$run/caption" "${@:3}"
    measure "$run/caption" "$1-seed$2" --no-ask --clip_score "$from/clip"
    $python train_sft.py --init "$run/caption" --seed "$2" --steps 600 --out "$run/sft"
    measure "$run/sft" "sft_$1-seed$2"
}
filter() {  # seed; all that one filter writes
    local run="$runs/filter-seed$1" split
    $python train_caption.py --clip "$from/clip" --lm "$from/lm" --seed "$1" --eval_every 1000 \
        --objective blip --vit_rate 1 --steps 600 --out "$run"
    clean() {  # name, options
        split="$1_$seed"
        $python data/capfilt.py --run "$run" --seed "$seed" --out $data/$split.jsonl "${@:2}"
        mv $data/$split.report.json "$out/filter_$1-seed$seed.json"
    }
    seed="$1"
    clean filtered --no-synthetic
    clean captioned --threshold 0
    clean capfilt
    clean beam --n_beams 3
}
learn() {  # name, split, seed
    local run="$runs/$1-seed$3"
    $python train_clip.py --split "$2" --seed "$3" --steps 200 --out "$run/clip"
    $python train_caption.py --clip "$run/clip" --lm "$from/lm" --seed "$3" --eval_every 1000 \
        --objective lm --split "$2" --steps 300 --out "$run/caption"
    measure "$run/caption" "$1-seed$3" --no-ask
}

for seed in $seeds; do
    beside filter$seed filter $seed
    beside blip$seed objective blip $seed --vit_rate 1 --steps 300
    beside lm$seed objective lm $seed --vit_rate 0 --steps 800
    beside prefix_lm$seed objective prefix_lm $seed --vit_rate 0 --steps 800
done
all_done
for seed in $seeds; do
    beside web$seed learn web web $seed
    for name in filtered captioned capfilt beam; do beside $name$seed learn $name ${name}_$seed $seed; done
done
all_done
