"""Pickles of state dicts, interpreted without running what they ask for.

A pickle is a program that may call anything. `load` follows only the instructions that build strings, numbers, tuples,
lists and dicts, and looks nothing up in Python: the few names that a state dict needs have a meaning here, the names in
`INERT` become objects that do nothing, and any other name ends the reading. Nested values are never hashed, compared or
printed, which would take for ever if they repeat themselves.
"""

import pickletools
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NamedTuple

from squeeze_jax.errors import WeightError, shown

MOST_INSTRUCTIONS = 2**18  # the largest state dict here and its optimizer take 40,000
LARGEST_RANK = 8
MOST_ARGUMENTS = 7  # of _rebuild_tensor_v2
LARGEST_NUMBER = 2**40  # of an offset, a side or a stride
KEYS = (str, int, float, bool, type(None))

# The types of the values of a storage; "bfloat16" is none of NumPy's.
STORAGES = {
    "torch FloatStorage": "float32",
    "torch DoubleStorage": "float64",
    "torch HalfStorage": "float16",
    "torch BFloat16Storage": "bfloat16",
    "torch LongStorage": "int64",
    "torch IntStorage": "int32",
    "torch ShortStorage": "int16",
    "torch CharStorage": "int8",
    "torch ByteStorage": "uint8",
    "torch BoolStorage": "bool",
}
# What else lies beside the weights in a checkpoint: settings, times, numbers of NumPy. Their values are not needed.
_INERT = """
    argparse.Namespace types.SimpleNamespace pathlib.Path pathlib.PosixPath pathlib.PurePosixPath pathlib.WindowsPath
    pathlib.PureWindowsPath datetime.datetime datetime.date datetime.time datetime.timedelta collections.Counter
    collections.defaultdict copyreg._reconstructor copy_reg._reconstructor __builtin__.object builtins.object
    __builtin__.set builtins.set __builtin__.frozenset builtins.frozenset __builtin__.dict builtins.dict
    __builtin__.list builtins.list __builtin__.int builtins.int __builtin__.float builtins.float _codecs.encode
    numpy.dtype numpy.ndarray numpy.core.multiarray.scalar numpy._core.multiarray.scalar
    numpy.core.multiarray._reconstruct numpy._core.multiarray._reconstruct torch.Size torch.device torch.float32
    torch.float64 torch.float16 torch.bfloat16 torch.int64 torch.int32 torch.uint8 torch.bool
"""
INERT = frozenset(" ".join(name.rsplit(".", 1)) for name in _INERT.split())
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
VALUES = frozenset(
    [
        "BININT",
        "BININT1",
        "BININT2",
        "LONG1",
        "BINFLOAT",
        "BINUNICODE",
        "SHORT_BINUNICODE",
        "BINSTRING",
        "SHORT_BINSTRING",
        "BINBYTES",
        "SHORT_BINBYTES",
    ]
)
TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
MEMOIZED, RECALLED = ("BINPUT", "LONG_BINPUT", "MEMOIZE"), ("BINGET", "LONG_BINGET")
IGNORED = ("PROTO", "FRAME", "STOP")


class Storage(NamedTuple):
    """The values that tensors share: their type, one of the values of STORAGES, and the key that they lie under."""

    dtype: str
    key: str


class Tensor(NamedTuple):
    """A tensor in a storage; offset and strides in values."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Global(NamedTuple):
    """A name that a pickle asks for: "module name"."""

    name: str


class Inert:
    """Whatever is made by a name in INERT."""


def load(file: BinaryIO, storages: dict[str, Storage] | None = None) -> Any:
    """Reads one pickle; the file is then at its end.

    Args:
      file: the file.
      storages: all storages that the pickle names are added to it, by key.

    Returns:
      The value, of dicts, lists, tuples, strings, numbers, `Storage`s, `Tensor`s and `Inert` objects.

    Raises:
      WeightError: the pickle is damaged or too long, or asks for more than a state dict needs.
    """
    machine = _Machine({} if storages is None else storages)
    for count, (name, argument) in enumerate(_instructions(file)):
        if count >= MOST_INSTRUCTIONS:
            raise WeightError(f"its pickle has more than {MOST_INSTRUCTIONS:,} instructions")
        machine.follow(name, argument)
    return machine.pop()


def _instructions(file: BinaryIO) -> Iterator[tuple[str, Any]]:
    instructions = pickletools.genops(file)
    while True:
        try:
            opcode, argument, _ = next(instructions)
        except StopIteration:
            return
        except Exception as error:  # for damaged bytes, errors of several kinds
            raise WeightError(f"its pickle is damaged: {shown(str(error))}") from error
        yield opcode.name, argument


class _Machine:
    """The stack of a pickle and the values that it recalls."""

    def __init__(self, storages: dict[str, Storage]):
        self._storages = storages
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._copied = 0  # items of lists that were given to functions

    def follow(self, name: str, argument: Any) -> None:
        """Follows one instruction."""
        if name in VALUES:
            self._stack.append(argument)
        elif name in CONSTANTS:
            self._stack.append(CONSTANTS[name])
        elif name in MEMOIZED:
            self._memo[len(self._memo) if argument is None else argument] = self._top()
        elif name in RECALLED:
            if argument not in self._memo:
                raise WeightError("its pickle recalls what it never stored")
            self._stack.append(self._memo[argument])
        elif name in TUPLES:
            self._stack.append(tuple(reversed([self.pop() for _ in range(TUPLES[name])])))
        elif name == "MARK":
            self._marks.append(len(self._stack))
        elif name in FOLLOWED:
            FOLLOWED[name](self, argument)
        elif name not in IGNORED:
            raise WeightError(f"its pickle uses {name}, which no state dict needs; nothing was executed")

    def pop(self) -> Any:
        """Returns the last value and takes it off the stack."""
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            raise WeightError("its pickle takes more values than it makes")
        return self._stack.pop()

    def _top(self) -> Any:
        value = self.pop()
        self._stack.append(value)
        return value

    def _since_mark(self) -> list[Any]:
        if not self._marks:
            raise WeightError("its pickle ends a list that it never began")
        mark = self._marks.pop()
        values = self._stack[mark:]
        del self._stack[mark:]
        return values

    def _tuple(self, _: Any) -> None:
        self._stack.append(tuple(self._since_mark()))

    def _list(self, _: Any) -> None:
        self._stack.append([])

    def _dict(self, _: Any) -> None:
        self._stack.append({})

    def _append(self, _: Any) -> None:
        self._extend([self.pop()])

    def _appends(self, _: Any) -> None:
        self._extend(self._since_mark())

    def _extend(self, values: list[Any]) -> None:
        target = self._top()
        if isinstance(target, list):
            target += values
        elif not isinstance(target, Inert):
            raise WeightError("its pickle appends to something that is not a list")

    def _set_item(self, _: Any) -> None:
        value, key = self.pop(), self.pop()
        self._set([key], [value])

    def _set_items(self, _: Any) -> None:
        pairs = self._since_mark()
        self._set(pairs[::2], pairs[1::2])

    def _set(self, keys: list[Any], values: list[Any]) -> None:
        target = self._top()
        if isinstance(target, dict):
            target |= _dict_of(keys, values)
        elif not isinstance(target, Inert):
            raise WeightError("its pickle sets an item of something that is not a dict")

    def _global(self, argument: str) -> None:
        self._stack.append(_known(argument))

    def _stack_global(self, _: Any) -> None:
        name, module = self.pop(), self.pop()
        if type(name) is not str or type(module) is not str:
            raise WeightError("its pickle asks for a name that is not a string")
        self._stack.append(_known(f"{module} {name}"))

    def _call(self, _: Any) -> None:
        arguments, function = self.pop(), self.pop()
        if not isinstance(arguments, tuple) or not isinstance(function, Global):
            raise WeightError("its pickle calls something that is not a function")
        if arguments and isinstance(arguments[0], (list, tuple)):
            self._copied += len(arguments[0])
            if self._copied > MOST_INSTRUCTIONS:
                raise WeightError("its pickle copies more than a state dict has")
        self._stack.append(CALLED.get(function.name, _inert)(*arguments[:MOST_ARGUMENTS]))

    def _build(self, _: Any) -> None:
        self.pop()  # attributes: of a Namespace, or the metadata of a state dict
        if not isinstance(self._top(), (dict, Tensor, Inert)):
            raise WeightError("its pickle sets attributes of something that has none")

    def _persistent(self, _: Any) -> None:
        pid = self.pop()
        if not isinstance(pid, tuple) or len(pid) not in (5, 6) or not isinstance(pid[1], Global):
            raise WeightError("a storage of an unknown kind")
        kind, dtype, key = pid[0], STORAGES.get(pid[1].name), pid[2]
        if type(kind) is not str or kind != "storage" or dtype is None or type(key) is not str:
            raise WeightError("a storage of an unknown kind")
        if pid[5:] not in ((), (None,)):
            raise WeightError("a storage that is a part of another one; save the state dict again")
        storage = self._storages.setdefault(key, Storage(dtype, key))
        if storage.dtype != dtype:
            raise WeightError("two types of values in one storage")
        self._stack.append(storage)


FOLLOWED: dict[str, Callable[[_Machine, Any], None]] = {
    "TUPLE": _Machine._tuple,
    "EMPTY_LIST": _Machine._list,
    "EMPTY_SET": _Machine._list,
    "EMPTY_DICT": _Machine._dict,
    "APPEND": _Machine._append,
    "APPENDS": _Machine._appends,
    "ADDITEMS": _Machine._appends,
    "SETITEM": _Machine._set_item,
    "SETITEMS": _Machine._set_items,
    "GLOBAL": _Machine._global,
    "STACK_GLOBAL": _Machine._stack_global,
    "REDUCE": _Machine._call,
    "NEWOBJ": _Machine._call,
    "BUILD": _Machine._build,
    "BINPERSID": _Machine._persistent,
}


def _known(name: str) -> Global:
    if name in STORAGES or name in CALLED or name in INERT:
        return Global(name)
    dotted = shown(name.replace(" ", "."))
    if name.startswith("torch ") and name.endswith("Storage"):
        raise WeightError(f"its tensors lie in a {dotted}; expected float32, float64, float16 or bfloat16")
    raise WeightError(
        f"its pickle uses {dotted}, which no state dict needs; nothing was executed. Save the weights alone: "
        "torch.save(model.state_dict(), FILE)"
    )


def _dict_of(keys: list[Any], values: list[Any]) -> dict[Any, Any]:
    if len(keys) != len(values) or not all(type(key) in KEYS for key in keys):
        raise WeightError("it has a dict with a key that is neither a string nor a number")
    return dict(zip(keys, values, strict=True))


def _ordered_dict(items: Any = (), *_: Any) -> dict[Any, Any]:
    """Python 2 passes its items, as lists of two."""
    pairs = items if isinstance(items, (list, tuple)) else [None]
    if not all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in pairs):
        raise WeightError("it has a dict of items that are not pairs")
    return _dict_of([key for key, _ in pairs], [value for _, value in pairs])


def _tensor(storage: Any = None, offset: Any = None, shape: Any = None, strides: Any = None, *more: Any) -> Tensor:
    if more[2:] and more[2] is not None and not (isinstance(more[2], dict) and not more[2]):
        raise WeightError("a tensor is a negated or conjugated view; save model.state_dict() of clones")
    if not isinstance(storage, Storage) or not isinstance(shape, tuple) or not isinstance(strides, tuple):
        raise WeightError("a tensor without a storage or a shape")
    if len(shape) != len(strides) or len(shape) > LARGEST_RANK:
        raise WeightError(f"a tensor has {len(shape)} axes and {len(strides)} strides")
    if not all(type(number) is int and 0 <= number < LARGEST_NUMBER for number in (offset, *shape, *strides)):
        raise WeightError("a tensor has a shape, strides or an offset that are not numbers, or are out of range")
    return Tensor(storage, offset, shape, strides)


def _parameter(data: Any = None, *_: Any) -> Any:
    return data


def _inert(*_: Any) -> Inert:
    return Inert()


CALLED: dict[str, Callable[..., Any]] = {
    "collections OrderedDict": _ordered_dict,
    "torch._utils _rebuild_tensor": _tensor,  # before PyTorch 0.4
    "torch._utils _rebuild_tensor_v2": _tensor,
    "torch._utils _rebuild_parameter": _parameter,
    "torch._utils _rebuild_parameter_with_state": _parameter,
}
