"""Measuring: rows -> documents -> requests -> samples -> metrics.  Imports only ``core`` of this project."""
