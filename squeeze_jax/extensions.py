"""Code from outside this package: registries of names that it may add to, and importing the modules that do."""

import dataclasses
import difflib
import importlib
import os
import pathlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Generic, TypeVar

from squeeze_jax.errors import ConfigError, SqueezeJaxError, shown

T = TypeVar("T")
PACKAGE = __name__.partition(".")[0]


@dataclasses.dataclass(frozen=True)
class Origin:
    """The module that registered a name: its dotted name, and its file ("" in a notebook)."""

    module: str
    file: str = ""

    @property
    def is_ours(self) -> bool:
        """Whether the module is part of this package."""
        return self.module.partition(".")[0] == PACKAGE

    @property
    def advice(self) -> str:
        """How to import the module: the option of every command, and what to do in Python."""
        module = shown(self.module)
        name = shown(os.path.relpath(self.file), 200) if "\0" not in self.file and os.path.isfile(self.file) else module
        return f"the module {module}: pass --import={name}, or in Python import {module} first"


class Registry(Mapping[str, T], Generic[T]):
    """Named entries of one kind, in the order of registration.

    Args:
      what: what an entry is, for messages: "model".
      error: the class of its errors.
    """

    def __init__(self, what: str, error: type[SqueezeJaxError] = ConfigError):
        self._what, self._error = what, error
        self._entries: dict[str, tuple[T, Any, Origin]] = {}

    def add(self, name: str, entry: T, identity: Any) -> None:
        """Adds an entry; to be called by the function `register` that other modules call.

        Args:
          name: the new name.
          entry: the entry.
          identity: equal if the same entry is registered again, as by a config file that is read more than once.

        Raises:
          SqueezeJaxError: another entry has this name.
        """
        scope = sys._getframe(2).f_globals  # of the module that calls `register`
        file = scope.get("__file__")
        origin = Origin(_module_name(pathlib.Path(file)), os.path.abspath(file)) if file else Origin(scope["__name__"])
        if name in self._entries:
            _, other, known = self._entries[name]
            if (other, known) != (identity, origin):
                raise self._error(f"another {self._what} is already registered as {name!r}; use another name.")
        self._entries[name] = entry, identity, origin

    def __getitem__(self, name: str) -> T:
        """Returns the entry with this name.

        Raises:
          SqueezeJaxError: the name is unknown; the nearest one is suggested.
        """
        if name not in self._entries:
            raise self._error(
                f"the {self._what} {name!r} is unknown{nearest(name, self)} If it is your own, pass the module "
                f"that registers it with --import."
            )
        return self._entries[name][0]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def origin(self, name: str) -> Origin:
        """Returns where an entry was registered."""
        self[name]
        return self._entries[name][2]


def function_name(function: Any) -> str:
    """Returns what identifies a registered function when its module is read again."""
    return getattr(function, "__qualname__", type(function).__qualname__)  # a functools.partial has no name


@dataclasses.dataclass(frozen=True)
class Options(Generic[T]):
    """What is registered with options of its own: a function that makes it, and its keys in the config."""

    make: T
    options: Mapping[str, Any]


def own_options(registry: Mapping[str, Options[Any]]) -> dict[str, Any]:
    """Returns the options of all entries and their defaults.

    Raises:
      ConfigError: two entries give one option different defaults.
    """
    found: dict[str, Any] = {}
    for name, entry in registry.items():
        for key, default in entry.options.items():
            if found.setdefault(key, default) != default:
                raise ConfigError(f"the option {key!r} of {name!r} has another default elsewhere; use another name.")
    return found


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns the end of a message about an unknown name: the nearest known one, and all of them."""
    close = difflib.get_close_matches(str(name), known := list(known), n=1)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    return f"{hint} Known: {', '.join(known)}."


def import_module(name: str) -> None:
    """Imports a module of the user's, for what it registers.

    Args:
      name: a dotted name, found from the current folder or installed; or a file, such as "nets/se_net.py". A file in a
        package is imported as a module of it. The modules beside it can be imported too.

    Raises:
      ConfigError: there is no such module, it is not valid Python, or another module has its name.
    """
    path = pathlib.Path(os.path.expanduser(name))
    root = pathlib.Path.cwd()
    if is_file := path.suffix == ".py" or os.sep in name:
        if not path.is_file():
            raise ConfigError(f"--import={name}: the file does not exist.")
        path = path.absolute()
        root = root_of(path)
        name = _module_name(path)
    if str(root) not in sys.path:
        sys.path.append(str(root))
    try:
        module = sys.modules.get(name) or importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):  # an import in the module fails
            raise
        raise ConfigError(
            f"--import={name}: there is no such module in {root} or among the installed ones; expected a module, such "
            f"as my_nets, or a file, such as folder/my_nets.py."
        ) from error
    except SyntaxError as error:
        raise ConfigError(f"{error.filename}, line {error.lineno}: {error.msg}") from error
    found = getattr(module, "__file__", None)
    if is_file and not (found and os.path.samefile(found, path)):
        raise ConfigError(f"--import={path}: {found or name} has the same name, {name}; rename the file.")


def _module_name(path: pathlib.Path) -> str:
    """Returns the dotted name that a file is imported as. A config file and a script are loaded by other names."""
    return ".".join(path.absolute().relative_to(root_of(path)).with_suffix("").parts).removesuffix(".__init__")


def root_of(path: pathlib.Path) -> pathlib.Path:
    """Returns the folder from which a file can be imported: the one around its package, else its own."""
    folder = path.absolute().parent
    while (folder / "__init__.py").exists():
        folder = folder.parent
    return folder
