"""Tables as text: sheets, numbers as people read them, and their coats."""
