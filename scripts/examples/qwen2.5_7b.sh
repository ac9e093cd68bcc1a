#!/usr/bin/env bash
# The same evaluation of Qwen2.5-7B-Instruct, with the same flags for two GPUs.
#   scripts/examples/qwen2.5_7b.sh DATA [more flags]    DATA: a data folder with mmlu/, gsm8k/ and spider/
set -euo pipefail
data=${1:?give the data folder}; shift
cd "$(dirname "$0")/../.."
python run_taq_icml.py --run_type full --model Qwen/Qwen2.5-7B-Instruct --data_dir "$data" \
  --dataset mmlu:stem mmlu:social_sciences mmlu:humanities mmlu gsm8k spider \
  --method TaCQ-native GPTQ-native SPQR-native SqueezeLLM-native SliM-LLM-native TaCQ SliM-LLM \
  --avg_bits 2.25 3.25 --seeds 0 1 2 --grad_dtype bf16 "$@"
