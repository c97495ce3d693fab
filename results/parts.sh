#!/usr/bin/env bash
# Do the parts of Llama's blocks help our own language model? Stage 0 with LayerNorm or RMSNorm, with
# an MLP of GELU or of SwiGLU, 2 seeds; 500 steps each. Writes results/parts/*.csv, the logs: their
# minutes tell what equal time gives. Needs data/book/prepared. About twenty minutes.
set -euo pipefail
cd "$(dirname "$0")/.."
source venv.sh
mkdir -p results/parts
for seed in ${SEEDS:-0 1}; do
    for parts in "layer gelu" "rms gelu" "layer swiglu" "rms swiglu"; do
        read -r norm act <<< "$parts"
        run=runs/parts/$norm-$act-seed$seed
        $python train_lm.py --norm $norm --act $act --steps 500 --eval_every 50 --seed "$seed" --out "$run"
        cp "$run/metrics.csv" "results/parts/$norm-$act-seed$seed.csv"
    done
done
