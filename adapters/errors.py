"""Errors of adapters: a `ValueError` that names the value and the cure."""


class AdapterError(ValueError):
    """An expert, mixture or basis that cannot be used as asked; the message says which, why, and what to do."""
