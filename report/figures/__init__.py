"""The report's figures: their numbers as frames, and how they are drawn."""
