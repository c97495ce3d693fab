#!/usr/bin/env bash
# Measure every number of the README anew. It takes most of a day; whoever stops it and starts it again
# goes on where it was. What other code has made counts as not made, see common.sh.
# NLVR_SOURCE and CIFAR10_SOURCE name the corpora; a part without its corpus is left out.
source "$(dirname "$0")/common.sh"
mkdir -p results/book results/nlvr

book() {  # seed
    local runs="runs/seed$1"
    ./speedrun.sh --seed "$1" --out "$runs"
    for stage in clip caption sft ppo dpo; do cp "$runs/$stage/eval.json" "results/book/$stage-seed$1.json"; done
    for stage in lm clip caption align sft; do cp "$runs/$stage/metrics.csv" "results/book/$stage-seed$1.csv"; done
    # the speedrun asks in unseen phrasings; the same questions in those that are taught
    $python evaluate.py --run "$runs/sft" --questions quiz --no-describe --no-blind
    cp "$runs/sft/quiz.json" "results/book/quiz-seed$1.json"
}
unread() {  # what is known of facts that no dialogue tells, where nothing was ever read
    $python train_lm.py --steps 0 --out runs/unread/lm
    $python train_caption.py --n_texts 0 --clip runs/seed0/clip --lm runs/unread/lm --out runs/unread/caption
    $python train_sft.py --n_texts 0 --init runs/unread/caption --out runs/unread/sft
    $python evaluate.py --run runs/unread/sft --out results/book/unread-seed0.json
    rm results/book/unread-seed0.answers.jsonl
}
nlvr() {
    ./speedrun.sh --data nlvr --source "$NLVR_SOURCE"
    for stage in clip sft; do cp "runs/nlvr/$stage/eval.json" "results/nlvr/$stage-seed0.json"; done
    $python data/instruct.py --data data/nlvr/prepared --n 3000
    $python results/sample.py data/nlvr/prepared
}
cifar10() {
    local data=data/cifar10/prepared run=runs/cifar10/clip
    mkdir -p results/cifar10
    $python data/cifar10/prepare.py --source "$CIFAR10_SOURCE" --out $data
    $python train_clip.py --data $data --out $run --patch_size 4 --batch_size 128 --shift 4 --mirror --steps 1200 --eval_every 300
    $python evaluate.py --run $run --data $data --out results/cifar10/clip-seed0.json
    mv results/cifar10/clip-seed0.answers.jsonl $run/eval.answers.jsonl
    $python results/confusion.py $run results/cifar10/confusion.png
}
pages() {
    rm -rf docs/report
    cp -r runs/seed0/report docs/report
    $python results/figure.py runs/seed0/sft
    $python results/foreign.py runs/seed0/dpo
}

unset OMP_NUM_THREADS  # the book is timed
for seed in 2 1 0; do  # the data folder then has the rankings of seed 0, whose runs the others use
    once book$seed book $seed
done
once unread unread
for name in choices sft sizes captions instruct preferences ppo dpo grpo honesty by_hand siglip wide \
    parts; do
    results/$name.sh
done
once backbones $python results/backbones.py
[ -z "${NLVR_SOURCE:-}" ] || once nlvr nlvr
[ -z "${CIFAR10_SOURCE:-}" ] || once cifar10 cifar10
once pages pages
$python results/tables.py --write
$python results/claims.py --write
