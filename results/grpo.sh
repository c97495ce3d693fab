#!/usr/bin/env bash
# Rewards that a program checks, from one chatbot. Writes results/grpo/. With all seeds:
#
#   grpo, more     GRPO; SFT that goes on for as long
#   told           SFT on the questions of GRPO, all but descriptions, with their right answers
#
# With the first seed alone: 8 and 16 answers to a prompt, with 8 also RLOO, Dr. GRPO, RLOO with the
# reward model, with PPO's KL penalty, and with that as a part of the reward, as PPO has it; the best of 16
# answers by it; PPO with it, from the speedrun.
#
# quiz_...    the same in the phrasings that SFT teaches; how sure is it of one-word answers?
# unseen_...  questions about colored things that no training picture shows
source "$(dirname "$0")/common.sh"

unseen() {  # pictures of colored things that training never shows, and questions about them
    grep '"group": "held_out"' $data/zeroshot.jsonl > $data/unseen.jsonl
    $python data/quiz.py --split unseen --out unseen_quiz
}
both() {  # run, name of the result, options; in unseen phrasings, and in taught ones
    measure "$1" "$2" "${@:3}"
    measure "$1" "quiz_$2" --no-describe --questions quiz --rank "${@:3}"
    measure "$1" "unseen_$2" --no-describe --questions unseen_quiz "${@:3}"
}
eight="--n_copies 8"  # used without quotes
grpo() {  # name, seed, options
    $python train_grpo.py --init "$from/sft" --out "$runs/$1-seed$2" --seed "$2" "${@:3}"
    cp "$runs/$1-seed$2/metrics.csv" "$out/$1-seed$2.csv"
    both "$runs/$1-seed$2" "$1-seed$2"
}
tell() {  # dialogues of one question that GRPO asks, too; each kind is asked equally often
    $python -c "
import random
from minivlm.loading.prepared import load_records, write_records
kinds = {}
for q in load_records('$data', 'prompts', need=('image',)):
    if q['answer']:
        kinds.setdefault(q['kind'], []).append(q)
rng, names = random.Random(0), sorted(kinds)
chosen = [rng.choice(kinds[rng.choice(names)]) for _ in range(120 * 64)]
write_records('$data', 'told', [{
    'id': f'{i} {q[\"id\"]}', 'image': q['image'], 'conversations': [
        {'from': 'human', 'value': '<image>\n' + q['question']},
        {'from': 'gpt', 'value': q['answer']}]} for i, q in enumerate(chosen)])"
}
told() {  # seed
    $python train_sft.py --init "$from/sft" --split told --steps 500 --muon_lr 0.005 --lr 5e-4 \
        --seed "$1" --out "$runs/told-seed$1"
    both "$runs/told-seed$1/ckpt.pt" "told-seed$1"
}
more() {  # seed
    $python train_sft.py --init "$from/sft" --steps 500 --muon_lr 0.005 --lr 5e-4 --seed "$1" \
        --out "$runs/more-seed$1"
    both "$runs/more-seed$1/ckpt.pt" "more-seed$1"  # best.pt is the beginning
}

once unseen unseen
once tell tell
once sft both "$from/sft" sft-seed0
for seed in $seeds; do
    beside grpo$seed grpo grpo $seed
    beside more$seed more $seed
    beside told$seed told $seed
done
seed=${seeds%% *}
beside rloo grpo rloo $seed $eight --advantage rloo
beside dr_grpo grpo dr_grpo $seed $eight --advantage dr_grpo
beside rloo_reward grpo rloo_reward $seed $eight --advantage rloo --reward "$from/reward"
beside rloo_reward3 grpo rloo_reward3 $seed $eight --advantage rloo --reward "$from/reward" \
    --kl_coef 0.3
beside rloo_in_reward grpo rloo_in_reward $seed $eight --advantage rloo --reward "$from/reward" \
    --kl_coef 0.3 --kl reward
for k in 8 16; do beside k$k grpo k$k $seed --n_copies $k; done
beside ppo both "$from/ppo" ppo-seed0
beside best16 both "$from/sft" best16-seed0 --best_of 16 --reward "$from/reward" --n_questions 60
all_done
