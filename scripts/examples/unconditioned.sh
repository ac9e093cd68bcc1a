#!/usr/bin/env bash
# What conditioning on the task is worth: the same methods calibrated on the task and on general text, in one table.
# One solve of each answers every data set: MMLU calibrates, whatever is asked.
#   scripts/examples/unconditioned.sh DATA MODEL [more flags]
set -euo pipefail
data=${1:?give the data folder}; model=${2:?give the model}; shift 2
cd "$(dirname "$0")/../.."
python run_taq_icml.py --run_type full --model "$model" --data_dir "$data" \
  --calib_dataset mmlu --dataset mmlu gsm8k hellaswag wikitext2 c4 \
  --method TaCQ SliM-LLM GPTQ-native --conditioning task c4 wikitext2 --avg_bits 2.25 3.25 --seeds 0 1 2 "$@"
