"""What passes between the tests and the solution when each runs in a sandbox of its own.

Lines of JSON on a socket. Plain data goes by value; everything else stays where it was made and goes by
number, as a Remote on the other side, whose every operation is asked of its owner. Nothing that arrives
is ever executed or unpickled. Used by both sides: by tests_py.py, which trusts no answer, and by
solution_py.py. Runs inside sandboxes, on the standard library alone.
"""

import builtins
import collections
import contextlib
import json
import operator

LINE_BYTES = 64 << 20
DEPTH = 100

# What a Remote can be asked, as a function of the object and further arguments.
OPERATIONS = {
    "get": getattr,
    "set": setattr,
    "del": delattr,
    "isinstance": lambda kind, x: isinstance(x, kind),
    "__call__": lambda f, *a, **k: f(*a, **k),
    "__enter__": lambda x: type(x).__enter__(x),
    "__exit__": lambda x, *a: type(x).__exit__(x, *a),
    "__contains__": operator.contains,
    "__getitem__": operator.getitem,
    "__setitem__": operator.setitem,
    "__delitem__": operator.delitem,
}
for _name, _function in {
    **{"len": len, "iter": iter, "next": next, "reversed": reversed, "hash": hash, "bool": bool},
    **{"str": str, "repr": repr, "int": int, "float": float, "complex": complex, "abs": abs},
    **{"round": round, "divmod": divmod, "format": format, "bytes": bytes},
}.items():
    OPERATIONS[f"__{_name}__"] = _function
BINARY = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor")
BINARY += ("lshift", "rshift")
COMPARE = ("eq", "ne", "lt", "le", "gt", "ge")
UNARY = ("neg", "pos", "invert", "index")
for _name in [*BINARY, *COMPARE, *UNARY]:
    OPERATIONS[f"__{_name}__"] = getattr(operator, f"__{_name}__")


def _swapped(function):
    return lambda x, y: function(y, x)


for _name in BINARY:
    OPERATIONS[f"__r{_name}__"] = _swapped(getattr(operator, f"__{_name}__"))

# By these an object decides an assertion itself, where plain data is compared by the asker.
DECIDES = frozenset(
    ["isinstance", "__bool__", "__contains__"]  # and __exit__, see _left
    + [f"__{x}__" for x in (*COMPARE, *UNARY, "int", "float", "complex", "abs", "round", "divmod")]
    + [f"__{r}{x}__" for x in BINARY for r in ("", "r")]
)


class Gone(BaseException):
    """The other side has ended, or said what cannot be. No Exception, as no test expects it."""


class Remote:
    """An object of the other side. plain: its value as plain data, for a subclass of list, dict, …"""

    __slots__ = ("__weakref__", "_number", "_plain", "_wire")

    def __init__(self, wire, number, plain=None):
        object.__setattr__(self, "_wire", wire)
        object.__setattr__(self, "_number", number)
        object.__setattr__(self, "_plain", plain)

    def __getattr__(self, name):
        if name.startswith("_"):  # such as what copy, mock and inspect look for
            raise AttributeError(name)
        return self._wire.ask("get", self, (name,))

    def __setattr__(self, name, value):
        self._wire.ask("set", self, (name, value))

    def __delattr__(self, name):
        self._wire.ask("del", self, (name,))

    def __call__(self, *args, **kwargs):
        return self._wire.ask("__call__", self, args, kwargs)

    def __instancecheck__(self, x):
        return isinstance(x, Remote) and self._wire.ask("isinstance", self, (x,)) is True


def _asking(name):
    def method(self, *args):
        if name in ("__eq__", "__ne__"):
            return _equal(self, args[0], name)
        if name == "__exit__":
            return _left(self, args)
        return self._wire.ask(name, self, args)

    method.__name__ = name
    return method


def _left(mine, args):
    """__exit__, whose traceback stays where it is. It may swallow what the reference's swallows, and a
    failed assertion never."""
    swallowed = mine._wire.ask("__exit__", mine, (*args[:2], None)) is True
    failed = isinstance(args[1], AssertionError)
    return swallowed and args[1] is not None and not failed and mine._wire.may_decide("__exit__")


def _equal(mine, other, name):
    same = other is mine
    if not same and mine._plain is not None:
        other = other._plain if isinstance(other, Remote) else other
        same = mine._plain == other
    elif not same and isinstance(other, Remote) and mine._wire.may_decide("__eq__"):
        return mine._wire.ask(name, mine, (other,))
    return same if name == "__eq__" else not same


for _name in OPERATIONS:
    if _name.startswith("__") and _name not in ("__call__",):
        setattr(Remote, _name, _asking(_name))


def _text(e):
    return e._said if hasattr(e, "_said") else Exception.__str__(e)


class Wire:
    """One end. may_export(object): whether it may be handed over by number. may_do(operation, object,
    arguments): whether the other side may do this to an object of ours. may_decide(operation): whether
    an object of the other side may answer it."""

    def __init__(self, sock, may_export=None, may_do=None, may_decide=None):
        self.reading = sock.makefile("rb")
        self.writing = sock
        self.mine = {}  # number -> object
        self.numbers = {}  # id -> number
        self.theirs = {}  # number -> Remote or exception class
        self.may_export = may_export or (lambda x: True)
        self.may_do = may_do or (lambda operation, x, args: True)
        self.may_decide = may_decide or (lambda operation: True)
        self.foreign = {}  # exception class of the other side -> number
        self.gone = False

    # --- values ----------------------------------------------------------------------------------
    def pack(self, x, depth=0):
        if depth > DEPTH:
            raise TypeError("a value is nested too deeply to be passed on")
        kind = type(x)
        if x is None or kind in (bool, int, float, str):
            return x
        if isinstance(x, Remote):
            return ["yours", x._number]
        if kind in (list, tuple, set, frozenset):
            return [kind.__name__, [self.pack(y, depth + 1) for y in x]]
        if kind is dict or kind in (
            collections.OrderedDict,
            collections.Counter,
            collections.defaultdict,
        ):
            return ["dict", self._items(x, depth)]
        if kind in (bytes, bytearray):
            return ["bytes", x.hex()]
        if kind is memoryview:
            return ["bytes", bytes(x).hex()]
        if kind is complex:
            return ["complex", x.real, x.imag]
        if kind is range:
            return ["range", x.start, x.stop, x.step]
        if isinstance(x, type) and issubclass(x, BaseException):
            return self._class(x)
        if isinstance(x, BaseException):
            return ["raised", self.pack_error(x)]
        if isinstance(x, tuple) and hasattr(x, "_fields"):
            return self._object(x, ["tuple", [self.pack(y, depth + 1) for y in x]])
        for base, value in ((bool, bool), (int, int), (float, float), (str, str)):
            if isinstance(x, base):
                return self._object(x, base(value(x)))
        for base in (list, tuple, set, frozenset):
            if isinstance(x, base):
                return self._object(x, [base.__name__, [self.pack(y, depth + 1) for y in iter(x)]])
        if isinstance(x, dict):
            return self._object(x, ["dict", self._items(x, depth)])
        return self._object(x, None)

    def _items(self, x, depth):
        return [[self.pack(k, depth + 1), self.pack(v, depth + 1)] for k, v in dict.items(x)]

    def _object(self, x, plain):
        if not self.may_export(x):
            raise TypeError(f"an object of type {type(x).__name__} cannot be passed on")
        return ["mine", self._number(x), plain]

    def _number(self, x):
        if id(x) not in self.numbers:
            self.numbers[id(x)] = len(self.mine)
            self.mine[len(self.mine)] = x  # kept, so that its id stays its own
        return self.numbers[id(x)]

    def _class(self, kind):
        if kind in self.foreign:
            return ["yours", self.foreign[kind]]
        if getattr(builtins, kind.__name__, None) is kind:
            return ["error", None, kind.__name__, kind.__name__]
        base = next(b for b in kind.__mro__ if getattr(builtins, b.__name__, None) is b)
        return ["error", self._number(kind), kind.__name__, base.__name__]

    def unpack(self, x):
        if x is None or isinstance(x, (bool, int, float, str)):
            return x
        tag = x[0]
        if tag in ("list", "tuple", "set", "frozenset"):
            return getattr(builtins, tag)(self.unpack(y) for y in x[1])
        if tag == "dict":
            return {self.unpack(k): self.unpack(v) for k, v in x[1]}
        if tag == "bytes":
            return bytes.fromhex(x[1])
        if tag == "complex":
            return complex(float(x[1]), float(x[2]))
        if tag == "range":
            return range(int(x[1]), int(x[2]), int(x[3]))
        if tag == "yours":
            return self.mine[x[1]]
        if tag == "raised":
            return self.unpack_error(x[1])
        if tag == "error":
            return self._error_class(x[1], x[2], x[3])
        if tag == "mine":
            number = int(x[1])
            if number not in self.theirs:
                self.theirs[number] = Remote(self, number)
            known = self.theirs[number]
            if isinstance(known, Remote):
                object.__setattr__(known, "_plain", self.unpack(x[2]))
            return known
        raise Gone(f"unknown tag {tag!r}")

    def _error_class(self, number, name, base):
        kind = getattr(builtins, str(base), Exception)
        if not (isinstance(kind, type) and issubclass(kind, Exception)):
            kind = RuntimeError  # SystemExit and the like end nothing on the other side
        if number is None:
            return kind
        if number not in self.theirs:
            self.theirs[number] = type(str(name), (kind,), {"__str__": _text})
            self.foreign[self.theirs[number]] = number
        return self.theirs[number]

    def pack_error(self, e):
        try:
            args = [self.pack(a) for a in e.args]
        except Exception:
            args = [str(e)]
        said = {"error": self._class(type(e)), "args": args}
        if type(e).__module__ != "builtins":
            said["text"] = str(e)
            said["fields"] = {}
            for name, value in vars(e).items():
                with contextlib.suppress(Exception):
                    said["fields"][name] = self.pack(value)
        return said

    def unpack_error(self, x):
        kind = self.unpack(x["error"])
        args = [self.unpack(a) for a in x["args"]]
        if not (isinstance(kind, type) and issubclass(kind, Exception)):
            kind = RuntimeError
        if issubclass(kind, (StopIteration, StopAsyncIteration, UnicodeError, OSError)):
            try:
                return kind(*args)
            except Exception:
                return RuntimeError(*args)
        e = kind.__new__(kind)
        e.args = tuple(args)
        for name, value in x.get("fields", {}).items():
            if not name.startswith("_"):
                setattr(e, name, self.unpack(value))
        if kind in self.foreign:
            vars(e)["_said"] = str(x.get("text", ""))
        return e

    # --- messages --------------------------------------------------------------------------------
    def ask(self, operation, x, args=(), kwargs=None):
        if operation in DECIDES and not self.may_decide(operation):
            raise TypeError(f"{operation} of an object, where the reference gives a plain value")
        message = {
            "do": operation,
            "of": x if isinstance(x, str) else self.pack(x),
            "args": [self.pack(a) for a in args],
            "kwargs": {k: self.pack(v) for k, v in (kwargs or {}).items()},
        }
        self.send(message)
        while True:
            answer = self.receive()
            if "do" in answer:
                self.serve(answer)
            elif "error" in answer:
                raise self.unpack_error(answer)
            else:
                return self.unpack(answer["value"])

    def serve(self, message):
        try:
            x = self.unpack(message["of"])
            args = [self.unpack(a) for a in message["args"]]
            kwargs = {k: self.unpack(v) for k, v in message["kwargs"].items()}
            if not self.may_do(message["do"], x, args):
                raise TypeError(f"{message['do']} of this object is not to be had from here")
            answer = {"value": self.pack(OPERATIONS[message["do"]](x, *args, **kwargs))}
        except Gone:
            raise
        except BaseException as e:
            answer = self.pack_error(e)
        self.send(answer)

    def send(self, message):
        if self.gone:
            raise Gone("the other side has ended")
        try:
            self.writing.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            self.gone = True
            raise Gone("the other side has ended") from None

    def receive(self):
        line = b"" if self.gone else self.reading.readline(LINE_BYTES)
        if not line.endswith(b"\n"):
            self.gone = True
            raise Gone("the other side has ended")
        message = json.loads(line)
        if not isinstance(message, dict):
            self.gone = True
            raise Gone("the other side talks nonsense")
        return message
