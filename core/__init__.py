"""Ground floor: types, registry, digests, model walking.  Imports nothing else of this project."""
