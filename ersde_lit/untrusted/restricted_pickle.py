"""A reader of pickles that runs nobody's code: it imports nothing, and calls only what its caller hands it.

Python's own unpickler imports the names that a file gives, and calls them. This one steps through the opcodes itself. A
name is a `Name` and stays one; an object is an `Instance`, a bag of state; a call is looked up in a table by name. What
is not in the table, or is no opcode that files of weights need, is refused.
"""

import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from ersde_lit.errors import UserError

MOST_STEPS = 1_000_000  # opcodes a pickle; those of the largest published network number about 100,000


class Refused(UserError):
    """Something that a file of weights has no need of, or should not say."""


class Stream(Protocol):
    """What is read from: `io.BytesIO` or `mmap`, as they allocate no more than they have, whatever is asked for."""

    def read(self, size: int, /) -> bytes: ...
    def readline(self) -> bytes: ...


class Name(NamedTuple):
    """A class or function that a pickle names; it is neither imported nor called."""

    module: str
    name: str

    def __str__(self) -> str:
        return repr(f"{self.module}.{self.name}"[:100])


@dataclass(eq=False, repr=False)
class Instance:
    """What a pickle says of an object: its class, the arguments it was made with, its state."""

    cls: Any
    arguments: tuple[Any, ...] = ()
    state: Any = None


class Names(NamedTuple):
    """What a file may name.

    Attributes:
        functions: what is called in the place of a named function, with the arguments that the file gives.
        classes: whose objects are kept as `Instance`.
        persistent: what stands for a persistent id; None where there are none.
    """

    functions: Mapping[tuple[str, str], Callable[..., Any]]
    classes: frozenset[tuple[str, str]] = frozenset()
    persistent: Callable[[Any], Any] | None = None


def read_pickle(stream: Stream, names: Names) -> Any:
    """The object that a pickle describes, made of plain containers, numbers, strings, bytes and `Instance`s.

    The stream is left behind the pickle. Memory and time are bounded by its length and `MOST_STEPS`.

    Raises:
        ValueError: in one line, a name that is not known, an opcode that is not needed, a damaged or endless pickle.
    """
    machine = _Machine(names)
    try:
        for step, (opcode, argument, _) in enumerate(pickletools.genops(stream)):  # type: ignore[arg-type]
            if step >= MOST_STEPS:
                raise Refused(f"more than {MOST_STEPS:,} opcodes")
            machine.execute(opcode.name, argument)
        return machine.pop()
    except Refused as error:
        raise Refused(str(error)) from None
    except (ValueError, TypeError, LookupError, OverflowError, MemoryError, RuntimeError) as error:
        message = " ".join(str(error).split())[:100]
        raise Refused(f"a damaged or truncated pickle: {message or type(error).__name__}") from None


class _Machine:
    """The stack and memo of a pickle in execution; a method for each opcode that is known."""

    def __init__(self, names: Names) -> None:
        self.names = names
        self.stack: list[Any] = []
        self.marks: list[int] = []  # how high the stack was at each
        self.memo: dict[int, Any] = {}  # a dict, in which a huge index does not make a huge list

    def execute(self, opcode: str, argument: Any) -> None:
        if opcode in _VALUES:
            self.stack.append(argument)
        elif opcode in _CONSTANTS:
            self.stack.append(_CONSTANTS[opcode])
        elif opcode in _EMPTY:
            self.stack.append(_EMPTY[opcode]())
        elif method := getattr(self, f"op_{opcode.lower()}", None):
            method() if argument is None else method(argument)
        else:
            raise Refused(f"it uses the opcode {opcode}, which files of weights do not need")

    def pop(self, kind: type = object) -> Any:
        self.top(kind)
        return self.stack.pop()

    def top(self, kind: type) -> Any:
        if self.marks and len(self.stack) <= self.marks[-1]:
            raise TypeError("a mark on the stack where it does not belong")
        if not isinstance(self.stack[-1], kind):
            raise TypeError(f"a {type(self.stack[-1]).__name__} on the stack where it does not belong")
        return self.stack[-1]

    def after_mark(self) -> list[Any]:
        """The values above the last mark, taken off the stack together with it."""
        mark = self.marks.pop()
        values = self.stack[mark:]
        del self.stack[mark:]
        return values

    # --- the pickle itself

    def op_proto(self, version: int) -> None:
        if version > 5:
            raise Refused(f"it is of pickle protocol {version}")

    def op_frame(self, length: int) -> None:
        """How much could be read ahead."""

    def op_stop(self) -> None:
        """After it, `genops` ends."""

    def op_mark(self) -> None:
        self.marks.append(len(self.stack))

    def op_memoize(self) -> None:
        self.memo[len(self.memo)] = self.top(object)

    def op_binput(self, index: int) -> None:
        self.memo[index] = self.top(object)

    def op_binget(self, index: int) -> None:
        self.stack.append(self.memo[index])

    op_long_binput, op_long_binget = op_binput, op_binget

    # --- containers

    def op_tuple(self) -> None:
        self.stack.append(tuple(self.after_mark()))

    def op_tuple1(self) -> None:
        self.stack.append((self.pop(),))

    def op_tuple2(self) -> None:
        self.stack.append((self.pop(), self.pop())[::-1])

    def op_tuple3(self) -> None:
        self.stack.append((self.pop(), self.pop(), self.pop())[::-1])

    def op_append(self) -> None:
        value = self.pop()
        self.top(list).append(value)

    def op_appends(self) -> None:
        values = self.after_mark()
        self.top(list).extend(values)

    def op_additems(self) -> None:
        values = self.after_mark()
        self.top(set).update(map(_key, values))

    def op_setitem(self) -> None:
        value, key = self.pop(), self.pop()
        self.top(dict)[_key(key)] = value

    def op_setitems(self) -> None:
        values = self.after_mark()
        self.top(dict).update(zip(map(_key, values[::2]), values[1::2], strict=True))

    # --- names, and what they make

    def op_global(self, argument: str) -> None:
        self._name(*argument.split(" ", 1))

    def op_stack_global(self) -> None:
        name, module = self.pop(str), self.pop(str)
        self._name(module, name)

    def _name(self, module: str, name: str) -> None:
        found = Name(module, name)
        if found not in self.names.functions and found not in self.names.classes:
            raise Refused(f"it names {found}, which files of weights do not need")
        self.stack.append(found)

    def op_reduce(self) -> None:
        arguments, function = self.pop(tuple), self.pop(Name)
        if function not in self.names.functions:
            raise Refused(f"it calls {function}")
        self.stack.append(self.names.functions[function](*arguments))

    def op_newobj(self) -> None:
        arguments, cls = self.pop(tuple), self.pop(Name)
        if cls not in self.names.classes:
            raise Refused(f"it makes a {cls}")
        self.stack.append(Instance(cls, arguments))

    def op_build(self) -> None:
        state = self.pop()
        if not isinstance(self.top(object), dict):  # a state dict has versions as its attributes, which nobody needs
            self.top(Instance).state = state

    def op_binpersid(self) -> None:
        if self.names.persistent is None:
            raise Refused("it refers to what is outside of it")
        self.stack.append(self.names.persistent(self.pop()))


def _key(value: Any) -> Any:
    """The value, if it can be hashed safely: a deeply nested tuple overflows the stack, huge numbers collide."""
    if not isinstance(value, str | int) or (isinstance(value, int) and not -(2**60) < value < 2**60):
        raise TypeError(f"a {type(value).__name__} as a key")
    return value


_VALUES = frozenset(
    {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"}
    | {"SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"}
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple, "EMPTY_SET": set}
