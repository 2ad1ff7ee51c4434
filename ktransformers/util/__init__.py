"""Helpers beside the way: tools, and functions scripts of upstream call."""
