#!/usr/bin/env bash
# The data engine: its speed and truth; what a chatbot learns from more or fewer dialogues, and
# without one type of them. Writes results/instruct/.
#
#   1000 ... 30000       the number of dialogues; a smaller set is the beginning of a larger one
#   no_conversation ...  as many of the two other types as among the 30,000
#
# All take the same number of steps. best.pt of each is measured, because a thousand dialogues are
# soon memorized. A tenth of the questions' tokens is noise (--noise).
source "$(dirname "$0")/common.sh"

write() { $python data/instruct.py --n "$2" --proportions "$3" --out "$data/instruct_$1.jsonl"; }
dialogues() {
    $python data/instruct.py --split val --n 1000 --out $data/instruct_val.jsonl
    local n
    for n in 1000 3000 10000 30000; do write $n $n 58:23:77; done
    write no_conversation 18987 0:23:77
    write no_detail 25633 58:0:77
    write no_reasoning 15380 58:23:0
}
learn() {  # name, seed
    local run="$runs/$1-seed$2" questions file
    $python train_sft.py --split "instruct_$1" --val_split instruct_val --init "$from/caption" \
        --out "$run" --seed "$2" --steps 400 --noise 0.1 --eval_every 100
    for questions in quiz eval; do  # in taught phrasings, and in unseen ones
        [ $questions = quiz ] && file="$1" || file="held_out_$1"
        measure "$run/best.pt" "$file-seed$2" --questions $questions --no-describe --n_questions 150
    done
}

once engine $python results/engine.py
once dialogues dialogues
for seed in $seeds; do
    for name in 1000 30000 no_conversation no_detail no_reasoning 3000 10000; do
        beside $name-$seed learn $name $seed
    done
done
all_done
$python results/efficiency.py
