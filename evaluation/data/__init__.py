"""Rows of data sets, documents, general text, and their splits."""
