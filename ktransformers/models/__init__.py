"""One file per architecture family, and the registry that finds them. Imports no torch."""
