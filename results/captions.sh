#!/usr/bin/env bash
# Captioning: the three objectives at equal time (3 seeds), CapFilt, SFT from the captioner (1 seed).
# Takes about 50 minutes on two CPU cores and writes results/captions/*.json. Needs
# data/shapes/prepared and the runs of results/make.sh (runs/seed0/lm, clip, caption, ...).
#
#   blip, lm, prefix_lm    300, 800 and 750 steps, about 3 minutes each
#   filter                 600 steps of blip; after the speedrun's 300 its precision is below .9
#   web, capfilt           CLIP (200 steps), then lm (300 steps): on web captions, of which 30 % are
#                          noise, and on the captions that CapFilt makes of them
#   sft_caption            SFT from the captioner, as long as 3a and SFT together in the speedrun
#   sft_caption_short      the same, shorter by the time of captioning
set -euo pipefail
cd "$(dirname "$0")/.."
source venv.sh
out=results/captions
mkdir -p $out
measure() {  # run, name of the result, options
    $python evaluate.py --run "$runs/$1" --no-blind --out "$out/$2-seed$seed.json" "${@:3}"
    rm "$out/$2-seed$seed.answers.jsonl"
}

for seed in ${SEEDS:-0 1 2}; do
    runs=runs/seed$seed
    from="--clip $runs/clip --lm $runs/lm --seed $seed --eval_every 1000"  # used without quotes
    measure caption blip --clip_score "$runs/clip" --rank
    for objective in lm prefix_lm; do
        [ $objective = lm ] && steps=800 || steps=750
        $python train_caption.py $from --objective $objective --steps $steps --out "$runs/caption_$objective"
        measure caption_$objective $objective --no-ask --clip_score "$runs/clip"
    done
done

for seed in ${CAPFILT_SEEDS:-0}; do
    runs=runs/seed$seed
    from="--lm $runs/lm --seed $seed --eval_every 1000"
    $python train_caption.py $from --clip "$runs/clip" --steps 600 --out "$runs/filter"
    $python data/capfilt.py --run "$runs/filter" --seed "$seed"
    cp data/shapes/prepared/capfilt.report.json "$out/filter-seed$seed.json"
    for split in web capfilt; do
        $python train_clip.py --split $split --seed "$seed" --steps 200 --out "$runs/clip_$split"
        $python train_caption.py $from --clip "$runs/clip_$split" --objective lm --split $split \
            --steps 300 --out "$runs/caption_$split"
        measure caption_$split $split --no-ask
    done
done

for seed in ${SFT_SEEDS:-0}; do
    runs=runs/seed$seed
    measure sft sft --rank
    for steps in 1220 450; do
        [ $steps = 450 ] && name=sft_caption_short || name=sft_caption
        $python train_sft.py --init "$runs/caption" --seed "$seed" --eval_every 1000 --steps $steps --out "$runs/$name"
        measure $name $name
    done
done
