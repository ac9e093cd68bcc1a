"""The demonstration: a Streamlit app over results folders and the harness's own processes; it imports no torch.

``streamlit run app/streamlit_app.py`` starts it.  views/ has one page a file; jobs.py starts and watches processes that
outlive the page; choice.py turns what a page asks into a command of the harness; show.py puts the report's figures and
tables on a page; folder.py reads a results folder once and keeps it as long as its files are the same.
"""
