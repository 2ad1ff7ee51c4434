"""Commands: what a user types. Nothing here imports torch or transformers at module level."""
