#!/usr/bin/env bash
# Does preference tuning look at the pictures? (3 seeds) DPO as usual, and with every picture gray, on
# the same pairs. All seeds begin with one chatbot, that of RUNS: runs/seed0 of results/make.sh, or
# RUNS=runs for that of ./speedrun.sh. Writes results/looking/.
set -euo pipefail
cd "$(dirname "$0")/.."
source venv.sh
from="${RUNS:-runs/seed0}" data=data/book/prepared gray=data/book/prepared_gray out=results/looking
mkdir -p $out $gray
$python data/preferences.py --run "$from/sft" --out $data/looking.jsonl
cp -r $data/*.json* $data/tokenizer.tiktoken $gray
$python -c "
import numpy as np
pictures = np.load('$data/train.npy', mmap_mode='r')
np.save('$gray/train.npy', np.full_like(pictures, 127))"
for seed in ${SEEDS:-0 1 2}; do
    for name in dpo gray; do
        folder=$data
        [ $name = dpo ] || folder=$gray
        run=runs/looking/$name-seed$seed
        $python train_dpo.py --init "$from/sft" --data $folder --out "$run" --seed "$seed" \
            --split looking_pairs --val_split looking_val_pairs
        $python evaluate.py --run "$run" --no-blind --out "$out/$name-seed$seed.json"
        rm "$out/$name-seed$seed.answers.jsonl"
    done
done
