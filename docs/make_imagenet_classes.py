"""Writes the names of ImageNet's 1,000 classes from the noun file of WordNet 3.0.

    python -m docs.make_imagenet_classes synsets.txt --wordnet /usr/share/wordnet/data.noun

synsets.txt has a WordNet id such as n01440764 at the beginning of each line, in the order of the classes; only the ids
are read. The noun file is in Debian's package wordnet-base. An id is "n" and the position in that file, whose first
word is the name. Words of several classes get their hypernym in parentheses: "crane (wading bird)".
"""

import argparse
import collections
import itertools
import pathlib

from squeeze_jax.pretrained.imagenet import CLASSES
from squeeze_jax.tables import write_csv

HYPERNYMS = ("@", "@i")


def read_nouns(path: pathlib.Path) -> dict[str, list[str]]:
    """Returns the fields of each set of synonyms by its id; see WordNet's wndb(5WN)."""
    lines = path.read_text("utf-8").splitlines()
    return {f"n{line[:8]}": line.partition(" | ")[0].split() for line in lines if not line.startswith(" ")}


def first_word(fields: list[str]) -> str:
    """Returns the first of the synonyms."""
    return fields[4].replace("_", " ")


def hypernym(fields: list[str]) -> str:
    """Returns the id of the first more general set of synonyms."""
    pointers = fields[5 + 2 * int(fields[3], 16) :]
    return next(f"n{offset}" for kind, offset in itertools.pairwise(pointers) if kind in HYPERNYMS)


def named(ids: list[str], nouns: dict[str, list[str]]) -> list[str]:
    """Returns a name of its own for each id."""
    words = [first_word(nouns[one]) for one in ids]
    counts = collections.Counter(map(str.casefold, words))
    names = [
        f"{word} ({first_word(nouns[hypernym(nouns[one])])})" if counts[word.casefold()] > 1 else word
        for one, word in zip(ids, words, strict=True)
    ]
    assert len(set(map(str.casefold, names))) == len(ids)
    return names


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ids", type=pathlib.Path)
    parser.add_argument("--wordnet", type=pathlib.Path, required=True)
    args = parser.parse_args()
    ids = [line.split()[0] for line in args.ids.read_text("utf-8").splitlines()]
    rows = zip(ids, named(ids, read_nouns(args.wordnet)), strict=True)
    write_csv(CLASSES, [{"id": one, "name": name} for one, name in rows])


if __name__ == "__main__":
    main()
