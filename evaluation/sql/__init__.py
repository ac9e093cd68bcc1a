"""Queries as text, schemas, and a process of their own that runs them on SQLite databases."""
