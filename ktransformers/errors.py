"""Errors meant for the person at the keyboard."""


class UserError(Exception):
    """One clear line: what is wrong, where, the value, and what to do."""
