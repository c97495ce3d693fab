#!/usr/bin/env bash
# From nothing to a visual chatbot: set-up, data, every stage, measurements. 44 minutes on two CPU
# cores that do 187 GFLOP/s in a large matrix product, installing packages apart; 31 of them up to
# the chatbot that no preferences have shaped yet.
#
#   ./speedrun.sh                                    the picture book
#   ./speedrun.sh --data nlvr --source nlvr.tar      the Cornell NLVR corpus, its folder or archive
#   ./speedrun.sh --seed 1 --out runs1               other weights and data order, another folder
#   ./speedrun.sh --until sft                        stop before stage 4: rankings, reward model, PPO,
#                                                    DPO (NLVR always does)
#   ./speedrun.sh --smoke                            every stage for a few steps, to see that it runs;
#                                                    writes to runs/smoke
set -euo pipefail
from="$PWD"
cd "$(dirname "$0")"

data=book source="" seed=0 out="" smoke=0 until=dpo
while [ $# -gt 0 ]; do
    case "$1" in
        --data) data="${2:?--data needs book or nlvr}"; shift 2 ;;
        --source) source="${2:?--source needs a folder}"; shift 2 ;;
        --seed) seed="${2:?--seed needs a number}"; shift 2 ;;
        --out) out="${2:?--out needs a folder}"; shift 2 ;;
        --until) until="${2:?--until needs sft, ppo or dpo}"; shift 2 ;;
        --smoke) smoke=1; shift ;;
        -h|--help) sed -n '2,12s/^# \{0,1\}//p' "$0"; exit 0 ;;
        *) echo "speedrun.sh: error: unknown option $1; see --help" >&2; exit 2 ;;
    esac
done
if [ "$from" != "$PWD" ]; then  # paths are meant from where the user stands
    case "$source" in ""|/*) ;; *) source="$from/$source" ;; esac
    case "$out" in ""|/*) ;; *) out="$from/$out" ;; esac
fi
case "$data" in
    book) prepare="" lm="" clip="" caption="" sft="" out="${out:-runs}" ;;
    nlvr) [ -n "$source" ] || { echo "speedrun.sh: error: --data nlvr needs --source, the corpus as published" >&2; exit 2; }
          prepare="" lm="--block_size 288" clip="--patch_size 8 --batch_size 96 --steps 300"
          caption="--batch_size 24" sft="--no-freeze_vit --batch_size 24 --steps 600" out="${out:-runs/nlvr}" ;;
    *) echo "speedrun.sh: error: unknown data $data, expected book or nlvr" >&2; exit 2 ;;
esac
folder="data/$data/prepared" steps="" few=""
case "$until" in sft|ppo|dpo) ;; *) echo "speedrun.sh: error: --until $until, expected sft, ppo or dpo" >&2; exit 2 ;; esac
[ "$data" = book ] || until=sft  # people are simulated in a world whose truth is known
rank="" ppo="" dpo=""
if [ "$smoke" = 1 ]; then
    out="runs/smoke" folder="data/$data/prepared_smoke"
    [ "$data" = nlvr ] || prepare="--n_train 400 --n_val 80 --n_web 50 --n_text 400 --n_zeroshot 1 --n_prompts 100"
    steps="--steps 4 --eval_every 2" few="--n_images 60 --n_questions 10 --n_describe 20 --max_new_tokens 24"
    rank="--n 40 --n_val 8 --k 2 --max_new_tokens 24" ppo="--batch_size 8 --n_val 8 --max_new_tokens 24"
    dpo="--batch_size 8 --n_val 8 --max_new_tokens 24"
fi

source venv.sh
begin=$(date +%s)  # options below are unquoted on purpose: each is a list of words, or nothing
mkdir -p "$out"
echo "part,began" > "$out/times.csv"  # seconds from the start to each part's; for the report
say() {
    local now=$(($(date +%s) - begin))
    echo "$1,$now" >> "$out/times.csv"
    printf '\n--- %s (after %d s) ---\n' "$2" "$now"
}

say data "data: draw or read the pictures, write what is said about them, train the tokenizer"
$python "data/$data/prepare.py" --out "$folder" ${source:+--source "$source"} $prepare
say lm "stage 0, language: a GPT learns to continue text"
$python train_lm.py --data "$folder" --out "$out/lm" --seed "$seed" $lm $steps
say clip "stage 1, alignment: pictures and captions meet"
$python train_clip.py --data "$folder" --out "$out/clip" --seed "$seed" $clip $steps
say "measure CLIP" "measure CLIP on held-out pictures"
$python evaluate.py --run "$out/clip" --data "$folder" $few
say caption "stage 2, captioning: the model learns to say what is there"
$python train_caption.py --data "$folder" --clip "$out/clip" --lm "$out/lm" --out "$out/caption" --seed "$seed" $caption $steps
say "measure the captioner" "measure the captioner: captions, and the same questions as the chatbot's, which it cannot answer"
$python evaluate.py --run "$out/caption" --data "$folder" --clip_score "$out/clip" --no-blind --n_questions 40 --n_describe 100 $few
say align "stage 3a, connector: the projector alone learns, as in LLaVA, whose 3b starts from here"
$python train_align.py --data "$folder" --clip "$out/clip" --lm "$out/lm" --out "$out/align" --seed "$seed" $steps
say sft "stage 3b, instructions: the captioner learns to answer"
$python train_sft.py --data "$folder" --init "$out/caption" --out "$out/sft" --seed "$seed" $sft $steps
say "measure SFT" "measure the chatbot on held-out pictures"
seconds=$(($(date +%s) - begin))
$python evaluate.py --run "$out/sft" --data "$folder" --train_seconds $seconds $few
if [ "$until" != sft ]; then
    say rankings "rankings: the chatbot's own answers, judged by a simulated human"
    $python data/preferences.py --run "$out/sft" --data "$folder" --seed "$seed" $rank
    say reward "stage 4a, reward: which answer is better?"
    $python train_reward.py --data "$folder" --init "$out/sft" --out "$out/reward" --seed "$seed" $steps
    say ppo "stage 4b, PPO: the chatbot learns to be preferred, near to where it was"
    $python train_ppo.py --data "$folder" --init "$out/sft" --reward "$out/reward" --out "$out/ppo" --seed "$seed" $ppo $steps
    say "measure PPO" "measure it again"
    $python evaluate.py --run "$out/ppo" --data "$folder" --no-blind $few
fi
if [ "$until" = dpo ]; then
    say dpo "stage 4c, DPO: the chatbot learns from the same rankings, pair by pair, without a reward model"
    $python train_dpo.py --data "$folder" --init "$out/sft" --out "$out/dpo" --seed "$seed" $dpo $steps
    say "measure DPO" "measure it too"
    $python evaluate.py --run "$out/dpo" --data "$folder" --no-blind $few
fi
report="$out/report"
[ "$out" != runs ] || report=report
say report "report: tables, curves, six pictures with each stage's answer"
$python results/report.py "$out" "$folder" "$report" "$until"
say done "done"
echo "talk to it: $python chat.py --run $out/$until --image $folder/samples/0.png"
