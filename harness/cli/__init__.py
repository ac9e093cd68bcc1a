"""The command line of run_taq_icml.py."""
