"""Pickles of torch.save, walked opcode by opcode instead of unpickled.

An unpickler does what the file asks for, whatever that is. Here a pickle can build plain
containers, plain values and views of storages, can call what `_CALLS` names, and pays for it in
proportion to its length. Anything else that it names, such as the class of a program's options or
of a numpy scalar, becomes an `Inert` placeholder: it is neither imported nor called, and what it is
filled with is dropped. All functions raise InputError with the rest of a sentence whose subject,
the file, the caller knows; on nonsense they raise whatever Python does.
"""

from __future__ import annotations

import math
import pickletools
import struct
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from drsformer_jax.errors import InputError

MAX_LENGTH = 2 * 2**20
"""The longest pickle that is read, in bytes; that of an official checkpoint has 0.1 MB."""
_MAX_VALUES = 2**20
_MAX_DEPTH = 32
_MAX_KEY = 1000

_STORAGES = {
    "FloatStorage": np.dtype(np.float32),
    "DoubleStorage": np.dtype(np.float64),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}
DTYPES = {dtype.name: dtype for dtype in _STORAGES.values()}
"""The types of numbers in tensors, by the name that numpy and torch have for them."""


class Storage(NamedTuple):
    """The memory of one or more tensors: type of its numbers, and bytes."""

    dtype: np.dtype
    content: np.ndarray


def loads(pickle: bytes | bytearray, storage: Callable[[str, np.dtype, int], Storage]) -> object:
    """What a pickle of torch.save holds; tensors are read-only views of their storages.

    Objects of classes that are not known here are `Inert`.

    Args:
        pickle: at most MAX_LENGTH bytes, in one of the protocols 2 to 5.
        storage: gives the memory for a key, a type and a count of numbers, or raises.
    """
    machine = _Machine(storage)
    for opcode, argument, _ in pickletools.genops(pickle):
        machine.step(opcode.name, argument)
    value = machine.result()
    _check_values(value)
    return value


def dumps(arrays: Mapping[str, np.ndarray], top: str, notes: Mapping[str, str]) -> bytes:
    """The pickle of `{top: OrderedDict of tensors, **notes}`; storages are numbered in order."""
    ordered = _global("collections", "OrderedDict") + _op("EMPTY_TUPLE", "REDUCE")
    parts = [_op("PROTO"), b"\x02", _op("EMPTY_DICT"), _text(top), ordered, _op("MARK")]
    kinds = {dtype: kind for kind, dtype in _STORAGES.items()}
    for number, (key, array) in enumerate(arrays.items()):
        kind = _global("torch", kinds[array.dtype])
        storage = (_text("storage"), kind, _text(str(number)), _text("cpu"), _count(array.size))
        sizes = [max(size, 1) for size in array.shape]
        strides = [math.prod(sizes[axis + 1 :]) for axis in range(array.ndim)]
        tensor = (
            _tuple(storage) + _op("BINPERSID"),
            _count(0),
            _tuple(map(_count, array.shape)),
            _tuple(map(_count, strides)),
            _op("NEWFALSE"),
            ordered,
        )
        parts += [_text(key), _global("torch._utils", "_rebuild_tensor_v2")]
        parts += [_tuple(tensor), _op("REDUCE")]
    parts += [_op("SETITEMS", "SETITEM")]
    for key, text in notes.items():
        parts += [_text(key), _text(text), _op("SETITEM")]
    return b"".join([*parts, _op("STOP")])


def shown(text: str) -> str:
    """Text out of a file, fit for one line of a terminal."""
    line = ascii(text)[1:-1]
    return line if len(line) <= 120 else line[:117] + "..."


def checked_key(key: Any) -> Any:
    """A key that is cheap to look up and fit to be shown.

    Hashing a nested tuple can overflow the stack, large integers can be made to collide, and one
    long text, kept in the memo, could be looked through and compared a million times.
    """
    match key:
        case None | bool() | Inert():  # An Inert is hashed by its identity.
            return key
        case int() if abs(key) < 2**32:
            return key
        case bytes() if len(key) <= _MAX_KEY:
            return key
        case str() if len(key) <= _MAX_KEY and key.isprintable():
            return key
    found = shown(key) if type(key) is str else f"a {type(key).__name__}"
    raise InputError(
        f"has {found} as a key; expected a printable name of at most {_MAX_KEY} characters "
        "or a small whole number"
    )


def _op(*names: str) -> bytes:
    return b"".join(_CODES[name] for name in names)


_CODES = {opcode.name: opcode.code.encode("latin-1") for opcode in pickletools.opcodes}


def _global(module: str, name: str) -> bytes:
    return _op("GLOBAL") + f"{module}\n{name}\n".encode()


def _text(text: str) -> bytes:
    content = text.encode()
    return _op("BINUNICODE") + struct.pack("<I", len(content)) + content


def _count(number: int) -> bytes:
    content = number.to_bytes(number.bit_length() // 8 + 1, "little")
    return _op("LONG1") + bytes([len(content)]) + content


def _tuple(items: Iterable[bytes]) -> bytes:
    return _op("MARK") + b"".join(items) + _op("TUPLE")


class Inert:
    """Something in a module, or what was made by it: a name that is never looked up there."""

    __match_args__ = ("name",)
    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return shown(self.name)


def _tensor(
    storage: Storage | Inert,
    offset: int,
    size: tuple[int, ...],
    stride: tuple[int, ...],
    requires_grad: bool,
    hooks: object,
    metadata: object = None,
) -> np.ndarray | Inert:
    """A tensor as torch saves it; offset and strides count numbers."""
    if isinstance(storage, Inert):
        return Inert(storage.name)
    if (type(storage), type(size), type(stride)) != (Storage, tuple, tuple) or metadata:
        raise InputError("has a tensor that is not storage, offset, size and stride alone")
    if not all(type(count) is int and count >= 0 for count in (offset, *size, *stride)):
        raise InputError("has a tensor whose offset, size or stride is no count")
    dtype, content = storage
    if 0 in size:
        return np.empty(size, dtype)
    last = offset + sum((count - 1) * step for count, step in zip(size, stride, strict=True))
    if last >= content.size // dtype.itemsize:
        raise InputError("has a tensor that reaches beyond its storage")
    # Checks the bounds again. A tensor expanded by strides of 0 takes no memory.
    steps = [step * dtype.itemsize for step in stride]
    view = np.ndarray(size, dtype, content, offset * dtype.itemsize, steps)
    view.flags.writeable = False
    return view


def _device(*names: object) -> str:
    match names:
        case [str(kind)]:
            return kind
        case [str(kind), int(index)] if 0 <= index < 2**16:
            return f"{kind}:{index}"
    raise InputError("has a device that is not a name, or a name and a small number")


def _set(items: object) -> set[object]:
    if type(items) is not list:
        raise InputError(f"makes a set of a {type(items).__name__}; expected a list")
    return {checked_key(item) for item in items}


_CALLS: dict[str, Callable[..., object]] = {
    "collections.OrderedDict": lambda: {},
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": lambda data, requires_grad, hooks: data,
    "torch.Size": lambda size: size,
    "torch.device": _device,
    "__builtin__.set": _set,
    "builtins.set": _set,
    # Bytes in protocol 2.
    "_codecs.encode": lambda text, encoding: text.encode("latin-1"),
    "__builtin__.bytes": lambda: b"",
}
"""What a pickle may call, and what is done then."""


def _named(name: str) -> object:
    """A global of a pickle; of a type of numbers its name."""
    if type(name) is not str or len(name) > _MAX_KEY:
        raise InputError(f"names a class of over {_MAX_KEY} characters; expected a short name")
    if name.removeprefix("torch.") in DTYPES and name.startswith("torch."):
        return name
    return Inert(name)


_LITERALS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"}
_LITERALS |= {"BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
_LITERALS |= {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"}
_MAKERS: dict[str, Callable[[], object]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
}


class _Machine:
    """The stack that a pickle's opcodes work on; those that torch.save emits, no others."""

    def __init__(self, storage: Callable[[str, np.dtype, int], Storage]) -> None:
        self._storage = storage
        self._stack: list[Any] = []
        self._below_marks: list[list[Any]] = []
        self._memo: dict[int, object] = {}
        self._arguments_left = MAX_LENGTH

    def result(self) -> object:
        """What is on the stack in the end."""
        [value] = self._stack
        return value

    def step(self, name: str, argument: Any) -> None:
        """Does what the opcode `name` asks for."""
        stack = self._stack
        match name:
            case _ if name in _LITERALS:
                stack.append(argument)
            case "BINGET" | "LONG_BINGET":
                stack.append(self._memo[argument])
            case "BINPUT" | "LONG_BINPUT":
                self._memo[argument] = stack[-1]
            case "MEMOIZE":
                self._memo[len(self._memo)] = stack[-1]
            case "MARK":
                self._below_marks.append(stack)
                self._stack = []
            case "TUPLE":
                items = self._since_mark()
                self._stack.append(tuple(items))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(self._popped(int(name[-1]))))
            case "FROZENSET":
                self._since_mark()
                self._stack.append(Inert("builtins.frozenset"))
            case _ if name in _MAKERS:
                stack.append(_MAKERS[name]())
            case "APPEND":
                self._fill(self._popped(1))
            case "SETITEM":
                self._fill(self._popped(2))
            case "APPENDS" | "SETITEMS" | "ADDITEMS":
                self._fill(self._since_mark())
            case "GLOBAL":
                stack.append(_named(argument.replace(" ", ".", 1)))
            case "STACK_GLOBAL":
                module, kind = self._popped(2)
                self._spend(len(module) + len(kind))  # The same texts could be joined many times.
                stack.append(_named(f"{module}.{kind}"))
            case "BINPERSID":
                stack.append(self._persistent(stack.pop()))
            case "REDUCE":
                stack.append(self._called(*self._popped(2)))
            case "NEWOBJ":
                stack.append(self._made(self._popped(2)[0]))
            case "NEWOBJ_EX":
                stack.append(self._made(self._popped(3)[0]))
            case "BUILD":
                self._build(stack.pop())
            case "PROTO" | "FRAME" | "STOP":
                pass
            case _:
                raise InputError(f"has the opcode {name}, which torch.save does not write")

    def _popped(self, count: int) -> list[Any]:
        if len(self._stack) < count:
            raise InputError("has a pickle that takes more than it holds")
        items = self._stack[-count:]
        del self._stack[-count:]
        return items

    def _since_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._below_marks.pop()
        return items

    def _fill(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is Inert:
            pass
        elif type(target) is list:
            target.extend(items)
        elif type(target) is set:
            target |= _set(items)
        elif type(target) is dict:
            keys = map(checked_key, items[::2])
            target.update(zip(keys, items[1::2], strict=True))
        else:
            raise InputError(f"fills a {type(target).__name__}; expected a container")

    def _persistent(self, identity: object) -> Storage | Inert:
        match identity:
            # The type before the value: of a tensor, == would make another as large.
            case [str("storage"), Inert(name), str(key), str(), int(count)]:
                dtype = _STORAGES.get(name.removeprefix("torch."))
                if dtype is None:  # Such as complex ones, which no network here has.
                    return Inert(name)
                return self._storage(checked_key(key), dtype, count)
        raise InputError("refers to something outside its pickle that is no storage of numbers")

    def _called(self, function: object, arguments: object) -> object:
        if type(function) is not Inert or type(arguments) is not tuple:
            raise InputError("calls what is no function; expected tensors and containers only")
        if function.name not in _CALLS:
            return Inert(function.name)
        # One long argument could be passed a million times.
        sized = [item for item in arguments if type(item) in _SIZED]
        self._spend(len(arguments) + sum(map(len, sized)))
        return _CALLS[function.name](*arguments)

    def _spend(self, count: int) -> None:
        self._arguments_left -= count
        if self._arguments_left < 0:
            raise InputError("passes too many arguments; expected tensors and containers only")

    def _made(self, kind: object) -> Inert:
        if type(kind) is not Inert:
            raise InputError("makes an object of what is no class; expected tensors and containers")
        return Inert(kind.name)

    def _build(self, attributes: object) -> None:
        """The attribute that torch hangs on a state dict, versions of its modules, is ignored."""
        if type(self._stack[-1]) is Inert:
            return
        if type(attributes) is not dict or attributes.keys() != {"_metadata"}:
            raise InputError("sets attributes; expected tensors, containers and plain values only")


_CONTAINERS = {dict, list, tuple, set}
_SIZED = _CONTAINERS | {str, bytes}
_LEAVES = {str, bytes, int, float, bool, type(None), np.ndarray, Inert, Storage}


def _check_values(value: object) -> None:
    """Every value is plain or a tensor; written out, they are so few that a program can walk them.

    A few tuples, each of them twice the one before, can otherwise stand for more than memory holds.
    """
    level, count = [value], 1
    for _ in range(_MAX_DEPTH):
        strange = {type(item) for item in level} - _CONTAINERS - _LEAVES
        if strange:
            names = ", ".join(sorted(kind.__name__ for kind in strange))
            raise InputError(f"holds {names}; expected tensors, containers and plain values only")
        containers: list[Any] = [item for item in level if type(item) in _CONTAINERS]
        if not containers:
            return
        count += sum(map(len, containers))
        if count > _MAX_VALUES:
            raise InputError(f"holds over {_MAX_VALUES} values; expected those of a network")
        level = [item for container in containers for item in _members(container)]
    raise InputError(f"is nested over {_MAX_DEPTH} deep; expected a dict of tensors")


def _members(container: Any) -> Iterable[object]:
    return container.values() if type(container) is dict else container
