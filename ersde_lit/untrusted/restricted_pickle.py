"""Reader of untrusted pickles that imports nothing and calls only functions of its caller.

Python's unpickler imports the names in a file and calls them; its subclasses with a `find_class` still let a file
allocate too much memory or overflow the stack. This one executes the opcodes itself: a name stays a
`GlobalName`, an object becomes a `PickledObject` with its state, a call is looked up in a table. Other names, calls and
opcodes are refused.
"""

import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from ersde_lit.errors import UserError

MOST_STEPS = 1_000_000  # opcodes of a pickle; the largest published network has about 100,000


class Refused(UserError):
    """Content that files of weights do not need, or that is false."""


class Stream(Protocol):
    """Source of bytes: `io.BytesIO` or `mmap`, which allocate no more than they have, whatever is asked for."""

    def read(self, size: int, /) -> bytes: ...
    def readline(self) -> bytes: ...


class GlobalName(NamedTuple):
    """Name of a class or function in a pickle, neither imported nor called."""

    module: str
    name: str

    def __str__(self) -> str:
        return repr(f"{self.module}.{self.name}"[:100])


@dataclass(eq=False, repr=False)
class PickledObject:
    """An object in a pickle: its class, the arguments of its constructor, its state."""

    cls: Any
    arguments: tuple[Any, ...] = ()
    state: Any = None


class AllowedNames(NamedTuple):
    """The names that a file may contain.

    Attributes:
        functions: replacements by name, called with the arguments in the file.
        classes: those whose objects become a `PickledObject`.
        persistent: makes an object of a persistent id; None where there are none.
        dicts: subclasses of dict, whose objects become a dict.
    """

    functions: Mapping[tuple[str, str], Callable[..., Any]]
    classes: frozenset[tuple[str, str]] = frozenset()
    persistent: Callable[[Any], Any] | None = None
    dicts: frozenset[tuple[str, str]] = frozenset()

    def name(self, module: str, name: str) -> GlobalName:
        found = GlobalName(module, name)
        if found not in self.functions and found not in self.classes | self.dicts:
            raise Refused(f"it names {found}, which files of weights do not need")
        return found


def read_pickle(stream: Stream, allowed: AllowedNames) -> Any:
    """The content of a pickle: plain containers, numbers, strings, bytes and `PickledObject`s.

    The stream is left after the pickle. Memory and time are bounded by its length and `MOST_STEPS`.

    Raises:
        Refused: an unknown name, an opcode that is not needed, a damaged or endless pickle.
    """
    machine = _Machine(allowed)
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
    """Stack and memo of a pickle in execution."""

    def __init__(self, allowed: AllowedNames) -> None:
        self.allowed = allowed
        self.stack: list[Any] = []
        self.marks: list[int] = []  # heights of the stack
        self.characters = 0  # read so far: calls may make as many bytes of them
        self.memo: dict[int, Any] = {}  # a dict, where a huge index does not make a huge list

    def execute(self, opcode: str, argument: Any) -> None:
        """One opcode; those that push their result do so at the end."""
        match opcode:
            case "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = self.top()
            case "MEMOIZE":
                self.memo[len(self.memo)] = self.top()
            case "MARK":
                self.marks.append(len(self.stack))
            case "APPEND":
                value = self.pop()
                self.top(list).append(value)
            case "APPENDS":
                values = self.after_mark()
                self.top(list).extend(values)
            case "ADDITEMS":
                values = self.after_mark()
                self.top(set).update(map(_key, values))
            case "SETITEM":
                value, key = self.pop(), self.pop()
                self.top(dict)[_key(key)] = value
            case "SETITEMS":
                values = self.after_mark()
                self.top(dict).update(zip(map(_key, values[::2]), values[1::2], strict=True))
            case "BUILD":
                state = self.pop()
                if not isinstance(self.top(), dict):  # an OrderedDict's attributes are not needed
                    self.top(PickledObject).state = state
            case "PROTO" if argument > 5:
                raise Refused(f"it is of pickle protocol {argument}")
            case "PROTO" | "FRAME" | "STOP":
                pass
            case _:
                self.stack.append(self.result(opcode, argument))

    def result(self, opcode: str, argument: Any) -> Any:
        """The value that an opcode pushes."""
        if opcode in _VALUES:
            self.characters += len(argument) if isinstance(argument, str) else 0
            return argument
        if opcode in _CONSTANTS:
            return _CONSTANTS[opcode]
        if opcode in _EMPTY:
            return _EMPTY[opcode]()
        match opcode:
            case "BINGET" | "LONG_BINGET":
                return self.memo[argument]
            case "TUPLE":
                return tuple(self.after_mark())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                return tuple([self.pop() for _ in range(int(opcode[-1]))][::-1])
            case "GLOBAL":
                return self.allowed.name(*argument.split(" ", 1))
            case "STACK_GLOBAL":
                name, module = self.pop(str), self.pop(str)
                return self.allowed.name(module, name)
            case "REDUCE":
                arguments, function = self.pop(tuple), self.pop(GlobalName)
                if function not in self.allowed.functions:
                    raise Refused(f"it calls {function}")
                made = self.allowed.functions[function](*arguments)
                self.characters -= len(made) if isinstance(made, bytes) else 0
                if self.characters < 0:
                    raise Refused("it makes bytes of one text many times")
                return made
            case "NEWOBJ":
                arguments, cls = self.pop(tuple), self.pop(GlobalName)
                if cls in self.allowed.dicts:
                    return {}
                if cls not in self.allowed.classes:
                    raise Refused(f"it makes a {cls}")
                return PickledObject(cls, arguments)
            case "BINPERSID":
                if self.allowed.persistent is None:
                    raise Refused("it refers to an object outside of it")
                return self.allowed.persistent(self.pop())
        raise Refused(f"it uses the opcode {opcode}, which files of weights do not need")

    def pop(self, kind: type = object) -> Any:
        self.top(kind)
        return self.stack.pop()

    def top(self, kind: type = object) -> Any:
        if self.marks and len(self.stack) <= self.marks[-1]:
            raise TypeError("a mark on the stack where it does not belong")
        if not isinstance(self.stack[-1], kind):
            raise TypeError(f"a {type(self.stack[-1]).__name__} on the stack where it does not belong")
        return self.stack[-1]

    def after_mark(self) -> list[Any]:
        """Pops the values above the last mark, and the mark."""
        mark = self.marks.pop()
        values = self.stack[mark:]
        del self.stack[mark:]
        return values


def _key(value: Any) -> Any:
    """The value, if it is safe to hash: deeply nested tuples overflow the stack, huge numbers collide."""
    if not isinstance(value, str | int) or (isinstance(value, int) and not -(2**60) < value < 2**60):
        raise TypeError(f"a {type(value).__name__} as a key")
    return value


_VALUES = frozenset(
    {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"}
    | {"SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"}
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple, "EMPTY_SET": set}
