#!/bin/sh
# Repeats cifar100.json: the teacher's outputs once, then KD and KD++ from five seeds, in pairs.
#   docs/evidence/cifar100.sh DATA_DIR TEACHER_WEIGHTS OUT [FLAG OF ndfast compare ...]
# Killed, it goes on where it was. More of it: --methods dist dist++; --seed 5 --seeds 5 into another
# OUT. A longer schedule: EPOCHS=24 WARMUP=2 FILE=docs/evidence/cifar100-24.json.
set -eu
data=$1 teacher=$2 out=$3
shift 3
epochs=${EPOCHS:-12} warmup=${WARMUP:-1} file=${FILE:-docs/evidence/cifar100.json}
# The authors' 240 epochs and the 20 in which the distillation grows, by a twentieth.
set -- --recipe cifar100-resnet56-resnet20 --data-dir "$data" --precision bf16 --epochs "$epochs" \
    --schedule cosine --distill-warmup "$warmup" --data-seed 0 --methods kd kd++ --seeds 5 "$@"
ndfast teacher-outputs --recipe cifar100-resnet56-resnet20 --data-dir "$data" --precision bf16 \
    --epochs "$epochs" --data-seed 0 --per-epoch --teacher-weights "$teacher" --out "$out/outputs"
ndfast compare "$@" --teacher-outputs "$out/outputs" --out "$out/comparison" --resume
python docs/evidence/collect.py "$out/comparison" "$file" --curves
