#!/usr/bin/env bash
# Reward models, and what is made of their scores. Writes results/preferences/.
#
#   reward, reward_last   the head reads every token of an answer, or the last one
#   reward_facts          it is told true captions
#   reward_500, _2000     it learns from so many rankings, instead of 4,300
#   leave_out_...         what each of them would rather not hear in a description
#   kl0, kl1              PPO without the KL penalty, and with .1 in place of .3
#   kl0_500               PPO without the penalty, from the reward model of 500 rankings
#   long                  three times as many rollouts as by default
#   no_end                PPO without the penalty for an answer that does not end
#   short                 PPO that pays for each token, too
#   facts                 PPO from the one that is told captions
#   caption, captioner    PPO of a captioner that was never taught to chat, and it before that
#   best_of_n_...         the best of 1 to 64 answers, by each reward model
source "$(dirname "$0")/common.sh"

reward() {  # name, seed, options
    $python train_reward.py --init "$from/sft" --out "$runs/$1-seed$2" --seed "$2" "${@:3}"
    cp "$runs/$1-seed$2/metrics.csv" "$out/$1-seed$2.csv"
}
few() {  # number of rankings, seed
    head -n "$1" $data/preferences.jsonl > "$data/preferences_$1.jsonl"
    reward "reward_$1" "$2" --split "preferences_$1"
}
ppo() {  # name, seed, reward model, options
    $python train_ppo.py --init "$from/sft" --reward "$runs/$3-seed$2" --out "$runs/$1-seed$2" --seed "$2" \
        --eval_every 7 "${@:4}"
    cp "$runs/$1-seed$2/metrics.csv" "$out/$1-seed$2.csv"
    measure "$runs/$1-seed$2" "$1-seed$2"
}
captioner() {
    measure "$from/caption" captioner-seed0
}

once captioner captioner
for seed in $seeds; do
    beside reward$seed reward reward $seed
    beside reward_last$seed reward reward_last $seed --pool last
done
seed=${seeds%% *}
beside reward_facts reward reward_facts $seed --facts --skip_long
for n in 500 2000; do beside reward_$n few $n $seed; done
all_done
for name in reward reward_last reward_500 reward_2000; do
    beside leave_out_$name $python results/leave_out.py "$from/sft" "$runs/$name-seed$seed" $name
done
beside kl0 ppo kl0 $seed reward --kl_coef 0
beside kl1 ppo kl1 $seed reward --kl_coef 0.1
beside kl0_500 ppo kl0_500 $seed reward_500 --kl_coef 0
beside long ppo long $seed reward --steps 210
beside no_end ppo no_end $seed reward --end_penalty 0
beside short ppo short $seed reward --length_penalty 0.01
beside facts ppo facts $seed reward_facts --skip_long
beside caption ppo caption $seed reward --init "$from/caption" --max_new_tokens 32 --steps 40
all_done
once best_of_n $python results/overoptimization.py "$from/sft" "$runs"
once rollouts $python results/rollouts.py "$from/sft"
