"""A small image generator: the kinds that train it and generate with it, and all they need."""
