#!/usr/bin/env bash
# The pipeline on real data with real models: a 135M scorer selects 40 of 400 Dolly rows, and a target trained on them is
# compared with the untrained target and with one trained on 40 random rows. Takes more than half an hour on two cores.
#     examples/dolly.sh MODELS DOLLY OUT
# MODELS has smollm2-135m, gemma3-270m and all-minilm-l6-v2 as Hugging Face folders; DOLLY is a file with Dolly's rows.
set -euo pipefail
models=$1 dolly=$2 out=$3
scored="dataset.path=$dolly dataset.limit=400 scorer=smollm2-135m scorer.path=$models/smollm2-135m
  cluster.embedder=$models/all-minilm-l6-v2 pct=10 trainer=cpu trainer.precision=bf16-mixed train_tokens=2048 score_tokens=4096"
held_out="dataset.path=$dolly dataset.skip=400 dataset.limit=100 trainer=cpu evaluator.max_new_tokens=64"
for target in smollm2-135m gemma3-270m; do
  for rule in lp_app random; do
    # shellcheck disable=SC2086
    python train.py $scored model=$target model.path="$models/$target" selection=$rule hydra.run.dir="$out/$target-$rule"
  done
  # shellcheck disable=SC2086
  python evaluate.py $held_out baseline="$models/$target" model="[$out/$target-lp_app,$out/$target-random]" \
    hydra.run.dir="$out/$target-evaluation"
done
