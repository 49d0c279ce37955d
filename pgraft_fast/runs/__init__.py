"""Runs from their beginning to their end: measured before, trained, measured after, saved, told in a report."""
