"""Declares the steps; imports no torch."""

from reprbasis import hookimpl


@hookimpl
def reprbasis_register(register):
    """Offer the steps `edit` and `edit-score`."""
