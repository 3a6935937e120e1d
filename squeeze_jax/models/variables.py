"""Comparison of two sets of named arrays: missing, unexpected and different entries."""

from typing import Any


def differences(expected: dict[str, Any], found: dict[str, Any]) -> str:
    """Lists the entries that differ, one per line: "-" for an expected entry, "+" for an unexpected one.

    Args:
      expected: name -> description (a shape, or a shape and a dtype).
      found: likewise.

    Returns:
      The lines; empty if both are equal.
    """
    missing = sorted(f"  - {name} {description}" for name, description in expected.items() - found.items())
    left_over = sorted(f"  + {name} {description}" for name, description in found.items() - expected.items())
    return "\n".join(missing + left_over)
