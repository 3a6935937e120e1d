"""Behavior shared by all commands: user errors are printed as one line, and routine library messages are hidden."""

import argparse
import ast
import codecs
import contextlib
import errno
import io
import itertools
import logging
import os
import pathlib
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import absl.logging
import ml_collections
from absl import app, flags
from ml_collections import ConfigDict

from squeeze_jax import console
from squeeze_jax.errors import ConfigError, FileError, InputError, SqueezeJaxError
from squeeze_jax.extensions import import_module, nearest, root_of
from squeeze_jax.files import CONFIG_FILE

# Files that parse flags. An exception raised in any other file is not a flag error.
FLAG_READERS = (
    os.path.dirname(absl.__file__) + os.sep,
    os.path.dirname(ml_collections.__file__) + os.sep,
    ast.__file__,
    "<frozen ",
)
PATH_KEYS = ("init_from", "dataset.name", "run.data_dir")  # of the config
# Flags whose values are paths.
PATHS = ("config", "import", "workdir", "output", "weights", "dataset", *(f"config.{key}" for key in PATH_KEYS))
IMPORT = "a module of your own, such as own.py, that registers networks, tasks and so on; may be repeated"
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
STORED = os.path.join(os.path.dirname(__file__), "workdir", "stored_config.py")
IN_CONFIG_FILE = "Error whilst parsing config file"  # of ml_collections
OURS = os.path.dirname(__file__) + os.sep
UNAVAILABLE = "Configuration is not available because of an earlier failure to load: "
NOT_LOADED = re.compile(r"^Failed loading config file \S+ Attempted \[[^]]*\]: \S+ \[Errno \d+\] ")
NOT_GIVEN = re.compile(r"^flag (--\w+)=None: .*")
ALL_FIELDS = re.compile(r"\s*Other fields present: .*?(?=Did you mean|$)", re.DOTALL)
ABSL_REMARKS = re.compile(r"^<.*?>: |;\s+repeat this option to specify a list of values$")  # in the help of a flag
MALFORMED = re.compile(r"ValueError\('malformed node or string.*", re.DOTALL)  # of ast


def run(main: Callable[[], int | None]) -> int:
    """Runs a command and returns its exit status.

    A `SqueezeJaxError` is printed as one line on stderr, with exit status 1, and so is a full disk. If the reader of
    the output closes the pipe, as `| head` does, the command ends silently with status 1. Any other exception is a bug
    and keeps its traceback.

    Args:
      main: the command; returns its exit status, or None for success.
    """
    quiet()
    _accept_any_name()
    try:
        status = main() or 0
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        _drop_output()
        return 1
    except OSError as error:
        if not isinstance(error, SqueezeJaxError) and error.errno not in NO_ROOM:
            raise
        _print_error(as_file_error(error))
        return 1
    except SqueezeJaxError as error:
        _print_error(error)
        return 1
    finally:
        console.clear()


def as_file_error(error: OSError) -> SqueezeJaxError | OSError:
    """Returns the error of ours for a disk that takes no more; other errors come back as they are."""
    if isinstance(error, SqueezeJaxError) or error.errno not in NO_ROOM:
        return error
    where = f"{os.fsdecode(error.filename)} cannot be written" if error.filename else "a file cannot be written"
    return FileError(f"{where} ({error.strerror}); make room or name another place.")


def _print_error(error: Exception) -> None:
    console.clear()
    print(f"{type(error).__name__}: {error}", file=sys.stderr)
    try:
        sys.stdout.flush()
    except OSError:
        _drop_output()


def _drop_output() -> None:
    """Leaves nothing to flush at exit, which would print another error."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run_with_flags(main: Callable[[], int | None]) -> None:
    """Parses the absl flags (including `--config`), runs a command like `run`, and exits with its status.

    Args:
      main: the command; returns its exit status, or None for success.
    """

    flags.DEFINE_multi_string("import", [], IMPORT)
    flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS["import"])  # for --help
    app.run(lambda _: run(main), flags_parser=_read_flags)


def parser(description: str | None) -> argparse.ArgumentParser:
    """Returns a parser of a command's arguments, with the option `--import`.

    Args:
      description: the docstring of the command, which --help prints.
    """
    made = _plain_parser(description)
    made.add_argument("--import", dest="imports", metavar="MODULE", action=_Import, default=(), help=IMPORT)
    return made


def _plain_parser(description: str | None) -> argparse.ArgumentParser:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return argparse.ArgumentParser(
        prog=f"python -m {spec.name.removesuffix('.__main__')}" if spec else None,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


class _Import(argparse.Action):
    """Imports the modules while arguments are parsed."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, value: Any, option: str | None = None) -> None:
        import_module(value)
        namespace.imports = (*namespace.imports, value)


def quiet() -> None:
    """Hides routine library messages, such as JAX's about a missing TPU and Orbax's about its start-up."""
    absl.logging.set_verbosity(absl.logging.ERROR)
    logging.getLogger("jax._src.xla_bridge").setLevel(logging.ERROR)


def _accept_any_name() -> None:
    """Lets names of files be printed that are not text: as their bytes if the output is in UTF-8, else escaped."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # and not a notebook's
        in_utf8 = codecs.lookup(sys.stdout.encoding).name == "utf-8"
        sys.stdout.reconfigure(errors="surrogateescape" if in_utf8 else "backslashreplace")


def _expand_home(argv: Sequence[str]) -> list[str]:
    """Expands "~" in the values of the flags PATHS, which no shell does after "="."""
    expanded, is_value = [], False
    for word in argv:
        name, equals, value = word.partition("=")
        is_path = word.startswith("-") and name.lstrip("-") in PATHS
        if is_path and equals:
            word = f"{name}={os.path.expanduser(value)}"
        elif is_value:
            word = os.path.expanduser(word)
        expanded.append(word)
        is_value = is_path and not equals
    return expanded


def _flag_error(error: Exception) -> Exception:
    """Returns what an exception raised while parsing flags is about: a user's error, or the bug itself.

    The parsers of absl and ml_collections wrap what they catch, so the first exception of the chain is looked at. One
    that the parsers raised themselves is about a flag, or about the line of a config file that sets a misspelled key.
    One that a config file raised is a bug.
    """
    chain = [error]
    while (earlier := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(earlier)
    for link in reversed(chain):
        if isinstance(link, SqueezeJaxError):
            return link
    first = chain[-1]
    if isinstance(first, SyntaxError):
        return ConfigError(f"{first.filename}, line {first.lineno}: {first.msg}")
    frames = [f for f in traceback.extract_tb(first.__traceback__) if not f.filename.startswith(OURS)]
    if not frames[-1].filename.startswith(FLAG_READERS):
        return first
    # absl's message names the flag; that of a failed `get_config` holds a traceback.
    message = str(first if IN_CONFIG_FILE in str(error) else error).removeprefix(UNAVAILABLE)
    while message[:1] in ("'", '"') and message[:1] == message[-1:]:  # KeyError quotes its message
        message = ast.literal_eval(message)
    message = " ".join(ALL_FIELDS.sub(" ", message).split())
    message = NOT_LOADED.sub("the config file cannot be loaded: ", message)
    message = MALFORMED.sub("expected a Python value; a section of the config is changed key by key", message)
    message = NOT_GIVEN.sub(r"pass \1", message)
    if message.startswith("'"):
        message = f"unknown key {message}"
    if message.startswith("Unknown command line flag 'config."):
        message = "pass --config, which the other --config.* flags change; without it, --workdir of a run"
    if "get_config() takes" in message:
        message += "; its argument is the text after the colon in --config FILE:ARGUMENT"
    lines = [f for link in chain for f in traceback.extract_tb(link.__traceback__) if f.name == "get_config"]
    if lines:
        message = f"{lines[-1].filename}, line {lines[-1].lineno}: {message}"
    return ConfigError(message)


def _with_stored_config(argv: Sequence[str]) -> list[str]:
    """Adds the config that is stored in the workdir, if there is one and no other is given; overrides apply to it."""
    given = dict(_given(argv))
    if "workdir" not in given or "config" in given or "weights" in given:
        return [*argv]
    if not os.path.exists(os.path.join(given["workdir"], CONFIG_FILE)):
        return [*argv]
    return [*argv[:1], f"--config={STORED}:{given['workdir']}", *argv[1:]]


def is_stored(flag: flags.Flag) -> bool:
    """Returns whether the config is the one stored in the workdir."""
    return bool(flag.present) and str(flag.config_filename).startswith(STORED)


def _given(argv: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yields the name of each flag, and its value: what follows "=", or the next argument."""
    for word, following in itertools.zip_longest(argv, argv[1:], fillvalue=""):
        name, _, value = word.partition("=")
        if name.startswith("-"):
            yield name.lstrip("-"), value or following


def import_first(argv: Sequence[str]) -> None:
    """Imports the modules of `--import`, whose options are keys of the config that is read next.

    Also makes the modules next to the config file's package importable, whatever the current folder is.

    Args:
      argv: the command's arguments, such as `--config=FILE` or `--config FILE`.
    """
    for name, value in _given(argv):
        if name == "config":
            folder = str(root_of(pathlib.Path(value.partition(":")[0])))
            if folder not in sys.path:
                sys.path.append(folder)
        elif name == "import":
            import_module(value)


def read_config(values: flags.FlagValues, argv: Sequence[str]) -> ConfigDict:
    """Returns the config given by `--config` and its overrides.

    Args:
      values: flag values with the flag "config" defined.
      argv: the arguments, starting with the program name.

    Raises:
      ConfigError: a flag, key or value is invalid.
    """
    argv = _expand_home(argv)
    with _flag_errors(argv):
        values(argv)
        values.config["seed"]  # raises if the file could not be loaded
        return values.config


@contextlib.contextmanager
def _flag_errors(argv: Sequence[str]) -> Iterator[None]:
    """Converts exceptions about invalid flags to ConfigError."""
    import_first(argv)
    try:
        yield
    except BrokenPipeError:
        raise
    except (flags.Error, KeyError, AttributeError, TypeError, ValueError, OSError, SyntaxError) as error:
        meant = _flag_error(error)
        raise meant.with_traceback(meant.__traceback__) from None


def _is_required(flag: flags.Flag) -> bool:
    return bool(flag.validators) and flag.default is None


def _print_help() -> None:
    """Prints the flags of this command as the other commands print theirs."""
    parser = _plain_parser(sys.modules["__main__"].__doc__)
    for flag in flags.FLAGS.get_key_flags_for_module(sys.argv[0]):
        default = f" Default: {flag.default}." if flag.default not in (None, []) else ""
        parser.add_argument(
            f"--{flag.name}",
            required=_is_required(flag),
            choices=getattr(flag.parser, "enum_values", None),
            help=f"{ABSL_REMARKS.sub('', flag.help)}{default}".replace("%", "%%"),
        )
    parser.add_argument(
        "--config.KEY", metavar="VALUE", help="Another value in the config; squeeze_jax/config.py has all keys."
    )
    parser.print_help()


def _check_names(argv: Sequence[str]) -> None:
    """Checks which flags are given, before the config is loaded, which takes longer than a person wants to wait.

    Raises:
      ConfigError: a flag is unknown, or one is missing.
    """
    words = [*itertools.takewhile(lambda word: word != "--", argv[1:])]
    given = dict(_given(words))
    if "flagfile" in given:
        return
    own = [f"--{flag.name}" for flag in flags.FLAGS.get_key_flags_for_module(sys.argv[0])]
    for name in dict(_given([word for word in words if word.startswith("--")])):  # -1 is a value
        if name not in flags.FLAGS and name.removeprefix("no") not in flags.FLAGS and not name.startswith("config."):
            raise ConfigError(f"the flag --{name} is unknown{nearest(f'--{name}', own)}")
    for name in flags.FLAGS:
        flag = flags.FLAGS[name]
        if name not in given and _is_required(flag):
            raise ConfigError(f"pass --{name}: {flag.help}")


def _read_flags(argv: Sequence[str]) -> list[str]:
    rest: list[str] = []
    if {"-h", "--help"} & {*argv}:
        sys.exit(run(_print_help))
    argv = _with_stored_config(_expand_home(argv))

    def read() -> None:
        _check_names(argv)
        with _flag_errors(argv), console.doing("reading the config"):
            rest.extend(flags.FLAGS(argv))
            if len(rest) > 1:
                raise InputError(f"unknown arguments: {' '.join(rest[1:])}; arguments begin with --.")
            if "config" in flags.FLAGS and flags.FLAGS.config is not None:
                config = flags.FLAGS.config
                config["seed"]  # raises if the file could not be loaded
                import jax

                jax.config.update("jax_enable_x64", config.model.dtype == "float64")

    status = run(read)
    if status:
        sys.exit(status)
    return rest
