"""KTransformers: very large Mixture-of-Experts language models on one ordinary machine."""

__version__ = "0.1.0"
