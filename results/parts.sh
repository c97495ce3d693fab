#!/usr/bin/env bash
# Do the parts of Llama's blocks help our own language model? Stage 0 with LayerNorm or RMSNorm, with
# an MLP of GELU or of SwiGLU; 500 steps each, one after the other. Writes results/parts/*.csv, the
# logs: their minutes tell what equal time gives.
source "$(dirname "$0")/common.sh"
unset OMP_NUM_THREADS

learn() {  # norm, activation, seed
    local run="$runs/$1-$2-seed$3"
    $python train_lm.py --norm "$1" --act "$2" --steps 500 --eval_every 50 --seed "$3" --out "$run"
    cp "$run/metrics.csv" "$out/$1-$2-seed$3.csv"
}

for seed in $seeds; do
    for act in gelu swiglu; do
        for norm in layer rms; do once $norm-$act-$seed learn $norm $act $seed; done
    done
done
