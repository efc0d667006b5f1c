#!/bin/sh
# Trains needle from nothing: `sh engine/needle/recipe.sh FOLDER`, about seven hours of two cores. What each
# step is for is in MODEL_CARD.md. Interrupted steps go on where they were; FOLDER/*/log.jsonl is the curve.
set -eu
OUT=${1:?a folder for checkpoints and logs}
PYTHON=${PYTHON:-.venv/bin/python}

train() { # NAME, START or "", then options
    name=$1 start=$2
    shift 2
    "$PYTHON" -m headway.engine.needle.train --compile --out "$OUT/$name" ${start:+--start "$OUT/$start"} "$@"
}
grow() { "$PYTHON" -m headway.engine.needle.grow "$OUT/$1" "$OUT/$2" $3; }
LONG="--layers 6 --stage 8 --last-stage 8"

train short "" --workers 2 --minutes 105 --last-stage 9
grow short/checkpoint.pt deep.pt "--after 0 1 --sharper 1:1.5"
train deep deep.pt --layers 6 --stage 4 --minutes 18 --lr .0015 --muon-lr .003
train long deep/checkpoint.pt $LONG --far 2 --workers 1 --tokens 4096 --minutes 66 --lr .0008 --muon-lr .0018 --decay 1
train longer long/checkpoint.pt $LONG --far 2 --workers 1 --tokens 8192 --minutes 68 --lr .0006 --muon-lr .0014 \
    --decay 1 --seed 51
train lists longer/checkpoint.pt --layers 6 --stage 3 --last-stage 3 --workers 1 --tokens 4096 --minutes 22 \
    --lr .001 --muon-lr .002 --seed 71
grow lists/checkpoint.pt far.pt "--sharper 0:1.3"
train far far.pt $LONG --far 0 2 --workers 2 --tokens 6144 --minutes 48 --lr .0007 --muon-lr .0016 --decay .9 --seed 82
"$PYTHON" -m headway.engine.needle.blend "$OUT/longer/checkpoint.pt" "$OUT/far/checkpoint.pt" "$OUT/blend.pt" --share .75
KEYS="--far 0 2 --mix keys --skips .3 --workers 1 --tokens 6144 --lr .0007 --muon-lr .0014 --decay .8"
train keys blend.pt $LONG $KEYS --minutes 58 --seed 92
train more keys/checkpoint.pt $LONG $KEYS --minutes 46 --seed 101
"$PYTHON" -m headway.engine.needle.export "$OUT/more/checkpoint.pt" --folder "$OUT/weights"
