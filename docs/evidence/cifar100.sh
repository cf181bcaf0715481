#!/bin/sh
# Repeats cifar100.json: the teacher's outputs once, then KD and KD++ from seven seeds, in pairs.
#   docs/evidence/cifar100.sh DATA_DIR TEACHER_WEIGHTS OUT [FLAG OF ndfast compare ...]
# Killed, it goes on where it was. More of it: --methods dist dist++; or --seed 7 --seeds 5 into another
# OUT, with OUTPUTS=OUT/outputs of the first. A longer schedule, by variables, for outputs and students
# take them alike: EPOCHS=24 WARMUP=2 FILE=docs/evidence/cifar100-24.json.
set -eu
data=$1 teacher=$2 out=$3
shift 3
epochs=${EPOCHS:-12} file=${FILE:-docs/evidence/cifar100.json} outputs=${OUTPUTS:-$out/outputs}
shared="--recipe cifar100-resnet56-resnet20 --precision bf16 --epochs $epochs --data-seed 0"
ndfast teacher-outputs $shared --data-dir "$data" --teacher-weights "$teacher" \
    --per-epoch --out "$outputs"
# The authors' 240 epochs, and the 20 in which the distillation grows, by a twentieth.
ndfast compare $shared --data-dir "$data" --teacher-outputs "$outputs" \
    --schedule cosine --distill-warmup "${WARMUP:-1}" --methods kd kd++ --seeds 7 "$@" \
    --out "$out/comparison" --resume
python docs/evidence/collect.py "$out/comparison" "$file" --curves
