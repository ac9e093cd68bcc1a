"""The report: results read back as tables, text, figures and a page; it imports nothing above it, and no torch.

schema.py is what a result holds, records.py its files.  tables/ sorts results into tables of cells that may be compared
and computes their rows; text/ writes these for terminals, Markdown, LaTeX, CSV and JSON; figures/ draws them; page.py
puts all of it on one self-contained page.
"""
