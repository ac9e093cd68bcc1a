"""The content-addressed store, and the unfinished work that it keeps through a kill."""
