"""Running a model: lowering, the cache, generation, and the model a script holds."""
