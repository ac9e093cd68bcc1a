"""The pages: each has ``page()``, which draws it from the top down."""
