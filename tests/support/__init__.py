"""The independent side of the tests: miniature models, the transformers reference, comparisons."""
