#!/bin/sh
# All of this recipe: data, six trainings, samples, measures, a figure and results.json.
#
#   sh recipes/patches/run.sh [OUT [section.key=value ...]]
#
# The overrides go to every training. What is there already is not made again: the same command goes
# on after it was stopped. Environment: PYTHON, NUM (samples), TRAIN and HELD (patches).
set -eu
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-patches-output}
[ $# -eq 0 ] || shift
python=${PYTHON:-python}
num=${NUM:-2048}
mkdir -p "$out"
cd "$out"

[ -f data/held.npy ] ||
    "$python" "$here/make_patches.py" data --train "${TRAIN:-16384}" --held "${HELD:-2048}"

for name in teacher cd ect trigflow sct meanflow; do
    "$python" -m cmsolvers train "$here/$name.toml" "$@"
done

# Samples of a model by so many steps, and their distance to the patches.
measured() {
    "$python" -m cmsolvers sample "$1" --steps "$2" --num "$num" --batch 512 --format npz \
        --out "samples/$1-$2"
    PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}" "$python" -m cmsolvers evaluate "samples/$1-$2" \
        --data data/train.npy --held data/held.npy --features patch_features:means_and_contrast \
        --out "measures/$1-$2"
}

measured teacher 18
for name in cd ect sct meanflow; do
    measured "$name" 1
    measured "$name" 2
done

"$python" "$here/report.py" .
