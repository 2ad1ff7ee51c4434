"""Benchmarks of the CUDA kernels: python -m bench.cuda."""
