#!/usr/bin/env bash
# TaCQ's evaluation of Llama-3-8B-Instruct: every method conditioned on the task that it is asked, three draws of the
# calibration documents.  About 40 GB of GPU memory; where one GPU has less, two share the blocks while gradients are
# taken: add --grad_device cuda:0,1 --eval_device cuda:0.  --dry_run shows what each row needs.
#   scripts/examples/llama3_8b.sh DATA [more flags]     DATA: a data folder with mmlu/, gsm8k/ and spider/
set -euo pipefail
data=${1:?give the data folder}; shift
cd "$(dirname "$0")/../.."
python run_taq_icml.py --run_type full --model meta-llama/Meta-Llama-3-8B-Instruct --data_dir "$data" \
  --dataset mmlu:stem mmlu:social_sciences mmlu:humanities mmlu gsm8k spider \
  --method TaCQ-native GPTQ-native SPQR-native SqueezeLLM-native SliM-LLM-native TaCQ SliM-LLM \
  --avg_bits 2.25 3.25 --seeds 0 1 2 --grad_dtype bf16 "$@"
