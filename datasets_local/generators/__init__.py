"""Generators of the embedded data sets; `datasets_local/make_embedded.py` is their command line."""
