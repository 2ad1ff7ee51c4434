"""The injectable operators. This package itself imports no torch: catalog.py names them all."""
