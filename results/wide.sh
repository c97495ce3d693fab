#!/usr/bin/env bash
# How should a wide picture be made square? CLIP on wide scenes that are cropped, padded or stretched,
# 2 seeds. Writes results/wide/*.json. Needs data/book/prepared. About a quarter of an hour.
set -euo pipefail
cd "$(dirname "$0")/.."
source venv.sh
mkdir -p results/wide
$python results/wide.py
for seed in ${SEEDS:-0 1}; do
    for fit in crop pad stretch; do
        run=runs/wide/$fit-seed$seed data=data/book/prepared_$fit
        $python train_clip.py --data $data --steps 300 --eval_every 300 --seed "$seed" --out "$run"
        $python evaluate.py --run "$run" --data $data --no-blind --out "results/wide/$fit-seed$seed.json"
        rm -f "results/wide/$fit-seed$seed.answers.jsonl"
    done
done
