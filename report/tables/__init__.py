"""Results as tables: which cells may be compared, what is computed of them, which rows are shown."""
