"""The harness: grid in, results out.  Imports everything below it; nothing below imports it."""
