#!/usr/bin/env bash
# The data engine: its speed and truth; what a chatbot learns from more or fewer dialogues, and
# without one type of them (3 seeds). Writes results/instruct/*.json. Needs data/book/prepared and
# the runs of results/make.sh (runs/seed0/align, ...).
#
#   1000 ... 30000       the number of dialogues; a smaller set is the beginning of a larger one
#   no_conversation ...  30,000 dialogues of the two other types, in their proportions
#   long                 30,000 dialogues, 1,000 steps instead of 500
#
# All but `long` take the same number of steps. best.pt of each is measured, because a thousand
# dialogues are soon memorized. A tenth of the questions' tokens is noise (--noise).
set -euo pipefail
cd "$(dirname "$0")/.."
source venv.sh
data=data/book/prepared out=results/instruct
mkdir -p $out
write() { $python data/instruct.py --n "$2" --proportions "$3" --out "$data/instruct_$1.jsonl"; }

$python results/engine.py
$python data/instruct.py --split val --n 1000 --out $data/instruct_val.jsonl
for n in 1000 3000 10000 30000; do write $n $n 58:23:77; done
write no_conversation 30000 0:23:77
write no_detail 30000 58:0:77
write no_reasoning 30000 58:23:0

for seed in ${SEEDS:-0 1 2}; do
    runs=runs/seed$seed
    for name in ${NAMES:-1000 3000 10000 30000 no_conversation no_detail no_reasoning long}; do
        split=$name steps=500
        [ $name = long ] && split=30000 steps=1000
        $python train_sft.py --split instruct_$split --val_split instruct_val --init "$runs/caption" \
            --out "$runs/instruct_$name" --seed "$seed" --steps $steps --noise 0.1 \
            --eval_every 100
        for questions in quiz eval; do  # in taught phrasings, and in unseen ones
            [ $questions = quiz ] && file=$name || file=held_out_$name
            $python evaluate.py --run "$runs/instruct_$name/best.pt" --questions $questions \
                --no-describe --no-blind --n_questions 150 --out "$out/$file-seed$seed.json"
            mv "$out/$file-seed$seed.answers.jsonl" "$runs/instruct_$name/$questions.answers.jsonl"
        done
    done
done
$python results/efficiency.py
