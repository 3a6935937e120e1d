"""Named arrays of a model: what is missing, left over or different between two sets of them."""

from typing import Any


def differences(expected: dict[str, Any], found: dict[str, Any]) -> str:
    """A line for each entry that only one side has, "-" where it is missing and "+" where it is left over.

    Args:
      expected: a description (a shape, or a shape and a dtype) of each name.
      found: likewise.

    Returns:
      The lines; empty where both are the same.
    """
    missing = sorted(f"  - {name} {description}" for name, description in expected.items() - found.items())
    left_over = sorted(f"  + {name} {description}" for name, description in found.items() - expected.items())
    return "\n".join(missing + left_over)
