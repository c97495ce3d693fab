#!/usr/bin/env bash
# What do stages 1 and 3a contribute? Four ways to use about the same time after language pretraining,
# with 3 seeds. Writes results/ablation/*.json. Needs data/book/prepared and the language models of
# results/make.sh (runs/seed0/lm, ...).
#
#   full          CLIP 200 steps, projector 100, SFT 450
#   no_3a         CLIP 200 steps,                SFT 500
#   no_1                          projector 100, SFT 540; a random ViT is trained in it too
#   neither                                      SFT 580; a random ViT is trained in it too
#
# None of them has stage 2, from which the default SFT starts; captions.sh compares that.
# The numbers of steps made the times equal in an earlier default world; measure them anew before the
# results are used. Each file holds its seconds.
set -euo pipefail
cd "$(dirname "$0")/.."
source venv.sh
runs=runs/ablation
mkdir -p results/ablation

for seed in ${SEEDS:-0 1 2}; do
    same="--seed $seed --eval_every 1000"  # used without quotes: it is several words
    begin=$(date +%s)
    $python train_clip.py $same --steps 200 --out $runs/clip  # for both ways that begin with CLIP
    clip_seconds=$(($(date +%s) - begin))
    $python train_clip.py $same --steps 0 --out $runs/random
    for way in full no_3a no_1 neither; do
        case $way in
            full) clip=clip seconds=$clip_seconds align=100 sft="--steps 450" ;;
            no_3a) clip=clip seconds=$clip_seconds align=0 sft="--steps 500" ;;
            no_1) clip=random seconds=0 align=100 sft="--steps 540 --no-freeze_vit" ;;
            neither) clip=random seconds=0 align=0 sft="--steps 580 --no-freeze_vit" ;;
        esac
        begin=$(date +%s)
        $python train_align.py $same --steps $align --lm "runs/seed$seed/lm" --clip $runs/$clip --out $runs/align
        $python train_sft.py $same $sft --init $runs/align --out $runs/sft
        seconds=$((seconds + $(date +%s) - begin))
        $python evaluate.py --run $runs/sft --no-blind --n_questions 200 --n_describe 200 \
            --train_seconds $seconds --out "results/ablation/$way-seed$seed.json"
    done
done
