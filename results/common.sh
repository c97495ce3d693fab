# Sourced by the scripts of this folder: they run from the repository's root, with .venv, and stop
# at the first error. What the same code, data and command have made is not made again, so a script
# that was stopped goes on where it was. These variables may be set:
#
#   RUNS     folder of the runs that a script begins with: runs/seed0, which results/make.sh makes,
#            or RUNS=runs, which ./speedrun.sh makes
#   SEEDS    "0 1 2"; the seeds of what a script itself trains. All begin with the same runs
#   JOBS     2; how many trainings run side by side, with a thread each. With JOBS=1 they run one
#            after the other, with all threads
set -euo pipefail
cd "$(dirname "$0")/.."
source venv.sh
script=$(basename "$0" .sh)
from="${RUNS:-runs/seed0}" data=data/book/prepared out=results/$script runs=runs/results/$script
seeds="${SEEDS:-0 1 2}" at_once="${JOBS:-2}" pids=""
code=$(git ls-files minivlm data ':(glob)train_*.py' evaluate.py speedrun.sh | xargs cat | sha256sum | cut -c 1-12)
made_of=""
if [ "$script" != make ]; then  # make.sh makes the data, again and again
    made_of=$(stat -L -c %Y $data/meta.json)
    mkdir -p "$out" "$runs"
fi
mkdir -p runs/made
[ "$at_once" = 1 ] || export OMP_NUM_THREADS=1
trap wait EXIT  # a failure stops no training that runs beside it
trap 'trap - EXIT TERM; kill 0' INT TERM

once() {  # name, command; a name belongs to one command
    local made="runs/made/$script.$1" by
    by="$code $made_of $from ${*:2} $( (declare -f; cat -- "${@:2}") 2>&1 | cksum || true)"
    if [ "$(cat "$made" 2>/dev/null)" = "$by" ]; then return; fi
    "${@:2}"
    echo "$by" > "$made"
}
beside() {  # name, command; it may run beside others until all_done
    while [ "$(jobs -rp | wc -l)" -ge "$at_once" ]; do wait -n; done
    once "$@" &
    pids="$pids $!"
}
all_done() {
    local pid
    for pid in $pids; do wait "$pid"; done
    pids=""
}
measure() {  # run, name of the result, options of evaluate.py
    $python evaluate.py --run "$1" --no-blind --out "$out/$2.json" "${@:3}"
    rm -f "$out/$2.answers.jsonl"
}
