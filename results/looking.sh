#!/usr/bin/env bash
# Does preference tuning look at the pictures? (3 seeds) DPO as usual, and with every picture gray, on
# the same pairs. Needs data/book/prepared and the runs of ./speedrun.sh (RUNS, by default
# runs/seed0), whose chatbot all seeds begin with. Writes results/looking/.
set -euo pipefail
cd "$(dirname "$0")/.."
source venv.sh
from="${RUNS:-runs/seed0}" data=data/book/prepared gray=data/book/prepared_gray out=results/looking
mkdir -p $out $gray
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
        $python train_dpo.py --init "$from/sft" --data $folder --out "$run" --seed "$seed"
        $python evaluate.py --run "$run" --no-blind --out "$out/$name-seed$seed.json"
        rm "$out/$name-seed$seed.answers.jsonl"
    done
done
