#!/usr/bin/env bash
# Captioning: the three objectives at equal time (3 seeds), CapFilt, SFT from 3a (1 seed).
# Writes results/captions/*.json. Needs data/book/prepared and the runs of results/make.sh
# (runs/seed0/lm, clip, caption, ...).
#
#   blip, lm, prefix_lm    300, 800 and 750 steps, which took equal times in an earlier world; lm has a
#                          frozen ViT, the others train it
#   filter                 600 steps of blip
#   web, capfilt           CLIP (200 steps), then lm (300 steps): on web captions, of which 30 % are
#                          noise, and on the captions that CapFilt makes of them
#   sft, sft_align         SFT from the captioner, and from stage 3a, as LLaVA does
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
    for objective in blip lm prefix_lm; do
        case $objective in
            blip) steps=300 vit="--vit_rate 1" ;;
            lm) steps=800 vit="--vit_rate 0" ;;
            *) steps=750 vit="--vit_rate 1" ;;
        esac
        $python train_caption.py $from --objective $objective $vit --steps $steps --out "$runs/caption_$objective"
        measure caption_$objective $objective --no-ask --clip_score "$runs/clip"
    done
done

for seed in ${CAPFILT_SEEDS:-0}; do
    runs=runs/seed$seed
    from="--lm $runs/lm --seed $seed --eval_every 1000"
    $python train_caption.py $from --clip "$runs/clip" --objective blip --vit_rate 1 --steps 600 --out "$runs/filter"
    $python data/capfilt.py --run "$runs/filter" --seed "$seed"
    cp data/book/prepared/capfilt.report.json "$out/filter-seed$seed.json"
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
    $python train_sft.py --init "$runs/align" --seed "$seed" --eval_every 1000 --out "$runs/sft_align"
    measure sft_align sft_align
done
