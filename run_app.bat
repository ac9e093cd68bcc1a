@echo off
rem Set up once, then show the demonstration at http://127.0.0.1:8501; flags: run_app.bat --results_dir DIR
cd /d "%~dp0"
if not exist .venv\Scripts\python.exe py -3 -m venv .venv || exit /b 1
if not exist .venv\app (
  .venv\Scripts\python.exe -m pip install -qq --disable-pip-version-check -r requirements-app.txt || exit /b 1
  type nul > .venv\app
)
.venv\Scripts\python.exe -m streamlit run app/streamlit_app.py -- %*
