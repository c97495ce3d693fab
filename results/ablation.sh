#!/usr/bin/env bash
# What do stages 1 and 3a buy? Four ways to spend the same time after language pretraining, 3 seeds.
# About 45 minutes on two CPU cores; writes results/ablation/*.json. Needs data/shapes/prepared.
#
#   full          CLIP 200 steps, projector 100, SFT 500
#   no_3a         CLIP 200 steps,                SFT 585
#   no_1                          projector 100, SFT 575 with the ViT, random at first, trained along
#   neither                                      SFT 645 with the ViT, random at first, trained along
#
# The step counts make the times equal: on one machine a step of CLIP takes 0.26 s, of 3a 0.2 s,
# of SFT 0.23 s with the ViT frozen and 0.29 s with it trained; each file tells the seconds it took.
set -euo pipefail
cd "$(dirname "$0")/.."
source venv.sh
runs=runs/ablation
mkdir -p results/ablation

for seed in ${SEEDS:-0 1 2}; do
    $python train_lm.py --seed "$seed" --out "$runs/lm"
    for way in full no_3a no_1 neither; do
        case $way in
            full) clip=200 align=100 sft=(--steps 500) ;;
            no_3a) clip=200 align=0 sft=(--steps 585) ;;
            no_1) clip=0 align=100 sft=(--steps 575 --no-freeze_vit) ;;
            neither) clip=0 align=0 sft=(--steps 645 --no-freeze_vit) ;;
        esac
        begin=$(date +%s)
        $python train_clip.py --seed "$seed" --steps $clip --eval_every 1000 --out "$runs/clip"
        $python train_align.py --seed "$seed" --steps $align --eval_every 1000 --lm "$runs/lm" --clip "$runs/clip" --out "$runs/align"
        $python train_sft.py --seed "$seed" "${sft[@]}" --eval_every 1000 --init "$runs/align" --out "$runs/sft"
        seconds=$(($(date +%s) - begin))
        $python evaluate.py --run "$runs/sft" --no-blind --n_questions 200 --n_describe 200 --train_seconds $seconds \
            --out "results/ablation/$way-seed$seed.json"
    done
done
