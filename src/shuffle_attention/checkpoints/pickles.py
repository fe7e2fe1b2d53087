"""Unpickle without importing or calling anything that a file names.

Tensors and plain containers are built here; everything else becomes a :class:`StandIn`, an inert object that keeps
what the file says of it. `pickletools`_ decodes the instructions, and the machine below has none that runs code.

.. _pickletools: https://docs.python.org/3/library/pickletools.html
"""

import pickletools
import re
from collections.abc import Callable
from typing import IO, Any

import torch
from torch import Tensor

_DTYPES = {str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)}
_STORAGES = {
    "Float": torch.float32,
    "Double": torch.float64,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
    "ComplexFloat": torch.complex64,
    "ComplexDouble": torch.complex128,
    "Untyped": torch.uint8,
}
# Names that only a file made to run commands asks to call.
_HOSTILE = re.compile(
    r"(os|posix|nt|subprocess|sys|shutil|socket|pty|ctypes|importlib|runpy|webbrowser|_?pickle|marshal|code)\..*"
    r"|builtins\.(eval|exec|compile|open|__import__|breakpoint)"
)
_PYTHON_2 = {"__builtin__": "builtins", "copy_reg": "copyreg"}
# Containers deeper than this, or lists and texts that repeat more of themselves than this, are no settings of a run.
_MOST_DEPTH = 64
_MOST_REPEATED = 1_000_000
_MOST_INSTRUCTIONS = 10_000_000  # a run of a thousand epochs has fewer than a million


class PickleError(ValueError):
    """A pickle that is damaged, or that no honest checkpoint would be."""


class StandIn:
    """An object, a class or a function that a file names, and that is neither imported nor called.

    Attributes:
        name: Its full name, such as ``argparse.Namespace``.
        args: Arguments of the call that would have made it; None for the class or function itself.
        state: Its attributes by name, or another state.
        items: What would have been set by ``object[key] = value``.
    """

    __slots__ = ("args", "items", "name", "state")

    def __init__(self, name: str, args: Any = None):
        self.name, self.args = name, args
        self.state: Any = None
        self.items: dict[Any, Any] = {}

    def __repr__(self) -> str:
        return f"<{self.name}>"

    @property
    def attributes(self) -> dict[str, Any]:
        """The attributes of an object, as far as the file says them plainly."""
        return self.state if isinstance(self.state, dict) else {}


def unpickle(file: IO[bytes], storage: Callable[[Any], Tensor]) -> Any:
    """Return the value of the next pickle in a file.

    Args:
        file: File at the start of the pickle.
        storage: Function that returns the values of a storage, a tensor (N,), for its persistent id.

    Raises:
        PickleError: If the pickle is damaged, or expands to far more than it holds.
    """
    try:
        value = _run(file, storage)
    except (IndexError, KeyError, AttributeError, TypeError) as error:  # an instruction without its operands
        raise PickleError(f"is damaged ({type(error).__name__}: {error})") from error
    _require_bounded(value)
    return value


def _run(file: IO[bytes], storage: Callable[[Any], Tensor]) -> Any:
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    arg: Any
    for number, (opcode, arg, _) in enumerate(pickletools.genops(file)):
        if number == _MOST_INSTRUCTIONS:
            raise PickleError(f"has more than {_MOST_INSTRUCTIONS:,} values beside its tensors")
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return stack.pop()
            case "MARK":
                marks.append(len(stack))
            case "POP":
                stack.pop()
            case "POP_MARK":
                since_mark()
            case "DUP":
                stack.append(stack[-1])
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode.name])
            case "EMPTY_LIST" | "EMPTY_SET":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_TUPLE":
                stack.append(())
            case "LIST" | "FROZENSET":
                stack.append(since_mark())
            case "TUPLE":
                stack.append(tuple(since_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(opcode.name[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "DICT":
                items = since_mark()
                stack.append({_key(key): value for key, value in zip(items[::2], items[1::2], strict=True)})
            case "APPEND":
                item = stack.pop()
                _extend(stack[-1], [item])
            case "APPENDS" | "ADDITEMS":
                items = since_mark()
                _extend(stack[-1], items)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _set_items(stack[-1], [key, value])
            case "SETITEMS":
                items = since_mark()
                _set_items(stack[-1], items)
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(memo[int(arg)])
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                memo[int(arg)] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "GLOBAL":
                stack.append(_named(*arg.split(" ", 1)))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                stack.append(_named(module, name))
            case "REDUCE" | "NEWOBJ":
                args, function = stack.pop(), stack.pop()
                stack.append(_made(function, args))
            case "NEWOBJ_EX":
                _, args, function = stack.pop(), stack.pop(), stack.pop()
                stack.append(_made(function, args))
            case "INST":
                stack.append(_made(_named(*arg.split(" ", 1)), tuple(since_mark())))
            case "OBJ":
                function, *args = since_mark()
                stack.append(_made(function, tuple(args)))
            case "BUILD":
                state = stack.pop()
                if isinstance(stack[-1], StandIn):
                    slots = isinstance(state, tuple) and len(state) == 2 and isinstance(state[1], dict)
                    stack[-1].state = {**(state[0] or {}), **state[1]} if slots else state
            case "PERSID" | "BINPERSID":
                stack.append(storage(arg if opcode.name == "PERSID" else stack.pop()))
            case "EXT1" | "EXT2" | "EXT4" | "NEXT_BUFFER" | "READONLY_BUFFER":
                raise PickleError(f"has the instruction {opcode.name}, which no checkpoint needs")
            case _:  # a number, a text or bytes
                stack.append(arg)
    raise PickleError("is cut off")


def _named(module: str, name: str) -> Any:
    """Return the type of a tensor or of a storage, or the stand-in for something else that a file names."""
    full = f"{_PYTHON_2.get(module, module)}.{name}"
    stored = re.fullmatch(r"torch\.(?:cuda\.|storage\.)?(\w+)Storage", full)
    if stored is not None and stored[1] in _STORAGES:
        return _STORAGES[stored[1]]
    return _DTYPES.get(full) or StandIn(full)


def _made(function: Any, args: Any) -> Any:
    """Return what a file asks to make by calling something with arguments, without calling it."""
    if not isinstance(function, StandIn) or function.args is not None or not isinstance(args, tuple):
        raise PickleError(f"is damaged: it calls a {type(function).__name__}")
    if _HOSTILE.fullmatch(function.name):
        raise PickleError(f"asks to run {function.name}, as a malicious file would; nothing was run. Do not use it")
    build = _BUILDERS.get(function.name)
    return StandIn(function.name, args) if build is None else build(*args)


def _key(key: Any) -> Any:
    """Return the key of a dict; containers in it would be hashed, which takes exponential time if they share parts."""
    if isinstance(key, tuple) and not any(isinstance(part, tuple) for part in key):
        return tuple(map(_key, key))
    if key is None or isinstance(key, str | bytes | int | float | StandIn | torch.dtype):
        return key
    raise PickleError(f"has a {type(key).__name__} as a key")


def _extend(target: Any, items: list[Any]) -> None:
    if isinstance(target, list):
        target.extend(items)
    elif isinstance(target, StandIn):
        target.items.update(zip(range(len(target.items), len(target.items) + len(items)), items, strict=True))
    else:
        raise PickleError(f"adds items to a {type(target).__name__}")


def _set_items(target: Any, items: list[Any]) -> None:
    into = target.items if isinstance(target, StandIn) else target
    if not isinstance(into, dict):
        raise PickleError(f"sets items of a {type(target).__name__}")
    into.update((_key(key), value) for key, value in zip(items[::2], items[1::2], strict=True))


def _tensor(values: Tensor, offset: int, size: Any, stride: Any, *_: Any) -> Tensor:
    """Return a tensor over the values of a storage; PyTorch checks that it lies inside."""
    if not all(isinstance(numbers, tuple) and len(numbers) <= 32 for numbers in (size, stride)):
        raise PickleError("has a tensor without a shape")
    try:
        tensor = values.as_strided(size, stride, offset)
    except RuntimeError as error:
        raise PickleError(f"has a tensor outside of its values: {error}") from error
    if tensor.numel() > max(len(values), _MOST_REPEATED):
        raise PickleError(f"repeats {len(values):,} values as a tensor of the shape {tuple(size)}")
    return tensor


def _meta_tensor(dtype: torch.dtype, size: Any, stride: Any, *_: Any) -> Tensor:
    return torch.empty_strided(size, stride, dtype=dtype, device="meta")


def _encoded(text: Any, encoding: Any = "latin1") -> bytes:
    """Return the bytes that protocol 2 writes as a text."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise PickleError(f"encodes a {type(text).__name__} as {encoding!r:.40}")
    return text.encode("latin1")


_BUILDERS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": lambda values, offset, size, stride, grad, hooks, dtype, *_: _tensor(
        values.view(dtype), offset, size, stride
    ),
    "torch._utils._rebuild_meta_tensor_no_storage": _meta_tensor,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
    "torch.nn.parameter.Parameter": lambda data=None, *_: data,
    "torch._tensor._rebuild_from_type_v2": lambda function, kind, args, state: _made(function, args),
    "torch.Size": lambda size=(): size,
    "torch.device": lambda *args: ":".join(map(str, args)),
    "collections.OrderedDict": lambda items=(): {_key(key): value for key, value in items},
    "collections.defaultdict": lambda *_: {},
    "collections.Counter": lambda counts=(): dict(counts),
    "builtins.set": lambda items=(): list(items),
    "builtins.frozenset": lambda items=(): list(items),
    "_codecs.encode": _encoded,
    "copyreg._reconstructor": lambda kind, *_: StandIn(kind.name, ()),
}


def _require_bounded(value: Any) -> None:
    """Raise PickleError if parts that refer to the same ones again and again expand to far more than there is."""
    sizes: dict[int, tuple[int, int] | None] = {}  # bytes when written out, and depth; None while being counted
    storages: set[int] = set()
    distinct = 0

    def measure(part: Any, depth: int) -> tuple[int, int]:
        nonlocal distinct
        if id(part) in sizes:
            known = sizes[id(part)]
            if known is None:
                raise PickleError("has a container that contains itself")
            return known
        if depth > _MOST_DEPTH:
            raise PickleError(f"has containers nested more than {_MOST_DEPTH} deep")
        if isinstance(part, str | bytes):
            own = size = len(part)
            height = 0
        elif isinstance(part, Tensor):  # of which many may be views of the same values
            storage = part.untyped_storage()
            size, height = part.numel() * part.itemsize, 0
            own = 0 if storage._cdata in storages else storage.nbytes()
            storages.add(storage._cdata)
        elif isinstance(part, dict | list | tuple):
            sizes[id(part)] = None
            parts = [*part.keys(), *part.values()] if isinstance(part, dict) else part
            own = 8 + sum(each.bit_length() // 3 if isinstance(each, int) else 8 for each in parts)
            measured = [measure(each, depth + 1) for each in parts]
            size = own + sum(size for size, _ in measured)
            height = 1 + max((height for _, height in measured), default=0)
            if height > _MOST_DEPTH:
                raise PickleError(f"has containers nested more than {_MOST_DEPTH} deep")
        else:
            return 0, 0
        sizes[id(part)] = size, height
        distinct += own
        return size, height

    size, _ = measure(value, 0)
    if size > _MOST_REPEATED + 10 * distinct:
        raise PickleError(f"has containers or tensors that share their content and expand to {size:.0e} bytes")
