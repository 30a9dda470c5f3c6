#!/usr/bin/env bash
# Everything that wants a GPU, in one go and without the internet: benchmarks/gpu.sh OUT [STEP ...]
#
#   tests    tests/gpu: CUDA graphs first, then the loop, resumes, precisions   TESTS_SECONDS, 300: stopped then
#   speed    images/s and memory, the most telling first (gpu.jsonl)            SPEED_SECONDS, at most 240 by default
#   study    Tables 1 and 2 of `fashion`, if a minute is left                   STUDY_MINUTES, all that is left by default
#   search   the teacher of `fashion`, and trials of its recipe on validation   SEARCH_MINUTES, 2; only if it is named
#
# `benchmarks/gpu.sh OUT` takes SECONDS_IN_ALL, 480 by default. What a step has found is in OUT when the step ends.
# Needs the packages of `pip install -e ".[test]"`; a line names each that is missing, and what is not measured without.
# Wheels carried along go into a folder that PYTHONPATH names. `fashion` needs Fashion-MNIST's files in
# /usr/share/datasets/fashion-mnist. A step that fails is one line, and the next one starts. Without a GPU it rehearses: the
# same commands at sizes for a CPU. Results are packed in OUT: logs, gpu.jsonl, and an archive of records, predictions and
# students. PROCESSES train side by side, 6 by default.
set -uo pipefail
cd "$(dirname "$0")/.."
out=$(mkdir -p "$1" && cd "$1" && pwd) && shift
steps=${*:-tests speed study}
processes=${PROCESSES:-6}
export OMP_NUM_THREADS=1 PYTHONUNBUFFERED=1
began=$SECONDS
failed=0
left() { echo $((${SECONDS_IN_ALL:-480} - (SECONDS - began))); }

failed() { failed=1 && echo "== $1: FAILED (status $2), see $3"; }

python3 - <<'PYTHON' 2>&1 | tee "$out/machine.txt"
import importlib.util
import torch
print("torch", torch.__version__, "|", torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU: a rehearsal")
ALL = "nothing runs"
NEEDED = {"timm": ALL, "jaxtyping": ALL, "safetensors": ALL, "yaml": ALL, "pandas": ALL, "sklearn": ALL, "lpips": "no LPIPS",
          "pytest": "no tests", "hypothesis": "no tests"}
for name, lost in NEEDED.items():
    if importlib.util.find_spec(name) is None:
        print(f"missing: {name}, so {lost}; carry its wheel")
PYTHON
grep -q rehearsal "$out/machine.txt" && export DEARKD_GPU_REHEARSAL=1

for step in $steps; do
    echo "== $step, after $((SECONDS - began)) s"
    case $step in
        tests)
            # another version of torch may warn of other things, which is no failure here
            timeout -k 10 "${TESTS_SECONDS:-300}" python3 -m pytest tests/gpu -o addopts= -o filterwarnings= \
                -v -s --durations=10 -p no:cacheprovider > "$out/tests.txt" 2>&1 || failed tests $? tests.txt
            tail -n 40 "$out/tests.txt"
            ;;
        speed)
            seconds=${SPEED_SECONDS:-$(($(left) < 240 ? $(left) : 240))}
            [ "$seconds" -le 0 ] && echo "no time is left" && continue
            timeout -k 10 $((seconds + 90)) python3 -m benchmarks.gpu --out "$out/gpu.jsonl" --seconds "$seconds" \
                2> "$out/speed.err" || failed speed $? speed.err
            ;;
        search)
            python3 -m benchmarks.study fashion --processes 1 || failed search $? "its lines above"
            python3 -m benchmarks.search workflow/search/fashion.yaml --processes "$processes" \
                --minutes "${SEARCH_MINUTES:-2}" --out results/fashion/search || failed search $? "its lines above"
            cat results/fashion/search/fashion.md
            ;;
        study)
            minutes=${STUDY_MINUTES:-$(($(left) / 60))}
            case $minutes in 0 | -*) echo "no minute is left" && continue ;; esac
            python3 -m benchmarks.study fashion ${STUDY_TABLES:-table2 table1} --processes "$processes" \
                --minutes "$minutes" > "$out/study.txt" 2>&1 || failed study $? "study.txt (1: runs are left)"
            tail -n 40 "$out/study.txt"
            ;;
        *)
            echo "no step $step; there are tests, speed, search and study" >&2
            exit 2
            ;;
    esac
done
if [ -d results/fashion ]; then
    students=$(find checkpoints/fashion -path '*seed0*' -name student.safetensors 2> /dev/null)
    tar czf "$out/fashion.tar.gz" results/fashion $students
fi
echo "== done after $((SECONDS - began)) s"
exit $failed
