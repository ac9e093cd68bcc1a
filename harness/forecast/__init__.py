"""Before any heavy work: checks, and estimates of memory, time and disk."""
