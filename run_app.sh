#!/usr/bin/env bash
# Set up once, then show the demonstration at http://127.0.0.1:8501; flags: ./run_app.sh --results_dir DIR
set -euo pipefail
cd "$(dirname "$0")"
make --no-print-directory .venv/app
exec .venv/bin/python -m streamlit run app/streamlit_app.py -- "$@"
