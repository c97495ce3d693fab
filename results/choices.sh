#!/usr/bin/env bash
# Choices of LLaVA and its critics, 600 steps of SFT behind each (3 seeds): the projector (one map, two
# maps, our default, which also knows the place of a patch), a connector stage or none, frozen or
# trained eyes. CLIP and language model are those of RUNS: runs/seed0 of results/make.sh, or RUNS=runs
# for those of ./speedrun.sh. Writes results/choices/.
set -euo pipefail
cd "$(dirname "$0")/.."
source venv.sh
from="${RUNS:-runs/seed0}" out=results/choices
mkdir -p $out

way() {  # name, seed, projector, steps of the connector stage, options of SFT
    local run="runs/choices/$1-seed$2"
    $python train_align.py --clip "$from/clip" --lm "$from/lm" --projector "$3" --steps "$4" --seed "$2" \
        --out "$run/align"
    $python train_sft.py --init "$run/align" --steps 600 --seed "$2" --out "$run/sft" "${@:5}"
    $python evaluate.py --run "$run/sft" --no-blind --out "$out/$1-seed$2.json"
    rm "$out/$1-seed$2.answers.jsonl"
}

for seed in ${SEEDS:-0 1 2}; do
    way placed "$seed" placed 150
    way mlp "$seed" mlp 150
    way linear "$seed" linear 150
    way no_connector "$seed" placed 0
    way eyes "$seed" placed 150 --no-freeze_vit
done
