"""Metrics of samples, intervals, paired tests and power; needs no torch."""
