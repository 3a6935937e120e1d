"""The named arrays of a network: which of them are kernels, and the comparison of two sets of them."""

from typing import Any

import flax.traverse_util

MOST_SHOWN = 20  # entries of a kind; a file of another network may have thousands
LONGEST = 200  # characters of a line; names come from files


def differences(expected: dict[str, Any], found: dict[str, Any]) -> str:
    """Lists the entries that differ, one per line: "-" for an expected entry, "+" for an unexpected one.

    Args:
      expected: name -> description (a shape, or a shape and a dtype).
      found: likewise.

    Returns:
      The lines, the first ones if there are many; empty if both are equal.
    """
    missing = sorted(f"  - {name} {description}" for name, description in expected.items() - found.items())
    left_over = sorted(f"  + {name} {description}" for name, description in found.items() - expected.items())
    return "\n".join(_first(missing) + _first(left_over))


def _first(lines: list[str]) -> list[str]:
    more = len(lines) - MOST_SHOWN
    return [line[:LONGEST] for line in lines[:MOST_SHOWN]] + ([f"  and {more:,} more"] if more > 0 else [])


def kernels(tree: Any) -> dict[tuple[str, ...], Any]:
    """Returns the kernels of a tree of parameters by their paths, such as ("fire2", "squeeze1x1", "kernel").

    Biases and the parameters of batch norm are vectors and are left out.
    """
    leaves = flax.traverse_util.flatten_dict(tree)
    return {path: leaf for path, leaf in leaves.items() if leaf.ndim > 1}
