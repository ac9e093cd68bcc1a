"""The report: results as one self-contained page of tables and figures, each with the numbers under it.

data.py, agreement.py   every figure's numbers as plain pandas frames, read from a results folder alone
figures.py, maps.py, bars.py   those frames drawn by matplotlib as SVG
page.py, page.html, pieces.html     tables and figures on one page that asks nothing of the network
"""
