"""Exports networks to files for other runtimes, and runs such files."""
