"""What the TaCQ paper reports, as it reports it: none of these numbers was measured here."""

PAPER = "Task-Circuit Quantization, arXiv 2504.07389"
TABLE_1 = "Table 1: Llama-3-8B-Instruct, accuracy in percent, mean of three calibration seeds"
ROWS_1 = (
    {"method": "full precision", "bits": "16", "GSM8k": 73.46, "MMLU": 66.51},
    {"method": "GPTQ", "bits": "2.00", "GSM8k": 2.86, "MMLU": 26.76},
    {"method": "SqueezeLLM", "bits": "2.15", "GSM8k": 2.07, "MMLU": 26.27},
    {"method": "SPQR", "bits": "2.14", "GSM8k": 1.24, "MMLU": 25.90},
    {"method": "SliM-LLM", "bits": "2.125", "GSM8k": 20.12, "MMLU": 34.84},
    {"method": "TaCQ", "bits": "2.10", "GSM8k": 36.11, "MMLU": 49.19},
    {"method": "GPTQ", "bits": "3.00", "GSM8k": 51.96, "MMLU": 56.30},
    {"method": "SqueezeLLM", "bits": "3.15", "GSM8k": 49.99, "MMLU": 59.66},
    {"method": "SPQR", "bits": "3.14", "GSM8k": 54.99, "MMLU": 58.65},
    {"method": "SliM-LLM", "bits": "3.125", "GSM8k": 66.24, "MMLU": 61.95},
    {"method": "TaCQ", "bits": "3.12", "GSM8k": 67.07, "MMLU": 63.28},
)
TABLE_5 = "Table 5: Llama-3-8B-Instruct, MMLU accuracy in percent, one score a row at the same share of kept weights"
ROWS_5 = (
    {"score": "|W|", "2 bits": 32.98, "3 bits": 59.79},
    {"score": "Σ g² (sample Fisher)", "2 bits": 41.80, "3 bits": 62.20},
    {"score": "|Σ g|", "2 bits": 34.23, "3 bits": 61.74},
    {"score": "Σ |g|", "2 bits": 42.70, "3 bits": 62.09},
    {"score": "MSG: |W| · Σ |g|", "2 bits": 47.86, "3 bits": 63.25},
    {"score": "QAL: Σ |g| · |W − Wq|", "2 bits": 47.75, "3 bits": 63.22},
    {"score": "TaCQ: all three factors", "2 bits": 49.19, "3 bits": 63.90},
)
