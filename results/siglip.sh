#!/usr/bin/env bash
# SigLIP's loss beside InfoNCE's: the same pairs in batches of 32, 128 and 512, 3 seeds.
# Writes results/siglip/*.json and figure.png. Needs data/book/prepared. About half an hour.
set -euo pipefail
cd "$(dirname "$0")/.."
source venv.sh
out=results/siglip
mkdir -p $out
pairs=51200
for seed in ${SEEDS:-0 1 2}; do
    for batch in 32 128 512; do
        for loss in infonce siglip; do  # in turn: a busy machine disturbs both
            run=runs/siglip/$loss-$batch-seed$seed
            steps=$((pairs / batch))
            $python train_clip.py --loss $loss --batch_size $batch --steps $steps --warmup $((steps / 10)) \
                --eval_every $steps --seed "$seed" --out "$run"
            $python evaluate.py --run "$run" --no-blind --out "$out/$loss-$batch-seed$seed.json"
            rm -f "$out/$loss-$batch-seed$seed.answers.jsonl"
        done
    done
done
$python results/siglip.py
