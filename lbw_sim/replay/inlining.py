"""Turns a component's own Python step into straight-line arithmetic on numbers, by reading its source.

Calls are inlined, NamedTuples dissolve into their fields, enumeration members and module constants become literals, and
every branch becomes a choice between two values that were both computed, so that a compiler can put candidates side by
side in vector lanes. It refuses, naming component, line and construct, whatever it does not fully understand, and every
function with a path that does not return: nothing is guessed.

Where Python would raise (division by zero, square root of a negative number, int(nan), an `assert` or a `raise` on the
path taken), the generated code sets a fault flag for that candidate instead, and the caller asks the reference engine.
Whole numbers are held in float64, exact up to 2**53. The sign of a zero may differ from Python's for whole numbers; no
comparison and no decision can see it.
"""

from __future__ import annotations

import ast
import builtins
import dataclasses
import enum
import inspect
import math
import operator
import re
import sys
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

inf = math.inf
_LARGEST_WHOLE = 2**53
_LEAST_POWER, _LARGEST_POWER = -1022, 1023
"""Exponents of the powers of two that are normal numbers."""
_DEPTH = 40
_NAME = re.compile(r"\b[a-z_]+\d+\b")


class CannotInline(Exception):
    """A construct that has no compiled form. The text names it; the candidate is replayed in plain Python."""


# ---- values while reading: what a Python name stands for ----------------------------------------------------------


class Num(NamedTuple):
    """A number of each candidate: a name in the generated code."""

    code: str
    whole: bool = False
    low: float = -inf
    """Bound that holds unless the value is nan."""
    high: float = inf
    truth: bool = False
    """A boolean."""
    if_true: frozenset[str] = frozenset()
    """Names that cannot be zero where this boolean is true."""
    if_false: frozenset[str] = frozenset()
    real: bool = False
    """Never nan, so that the bounds hold."""


class Const(NamedTuple):
    """Known while reading: a number, an enumeration member, a text, None."""

    value: Any


class Record(NamedTuple):
    """A NamedTuple; `values` in the order of its fields."""

    cls: type
    values: tuple[Any, ...]


class Items(NamedTuple):
    """A tuple of known length."""

    values: tuple[Any, ...]


class Known(NamedTuple):
    """A Python object that is no number: a module, class, function or collection of constants."""

    value: Any


class Part(NamedTuple):
    """A component, or the guard; its parameters are numbers of each candidate."""

    value: Any
    path: str


class Method(NamedTuple):
    """A method with its object."""

    function: Any
    owner: Any


class Replace(NamedTuple):
    """`record._replace`."""

    record: Record


class Nothing(NamedTuple):
    """The value on a path that raises."""


class Window(NamedTuple):
    """A tuple of numbers in the state, of any fixed length, as it is or with its oldest number dropped and one added.

    `added` is the new number; `moved` says, as a boolean in the code, whether it counts.
    """

    field: int
    added: Num | None = None
    moved: str = "False"


class View(NamedTuple):
    """Consecutive numbers of a window: from `start` (whole number in the code, oldest first), `length` of them."""

    window: Window
    start: str
    length: str
    length_is: str
    """The same length as a number of the candidate."""


class _Outcome(NamedTuple):
    """How a block ended."""

    names: dict[str, Any]
    returned: str
    """Boolean in the code: whether it returned; "False", "True" or a name."""
    value: Any


class Line(NamedTuple):
    """One assignment of the generated code, or with `body` a loop."""

    target: str
    text: str
    body: tuple[Line, ...] = ()


class _Guarded(NamedTuple):
    """One condition of the path that is being read."""

    code: str
    wanted: bool
    nonzero: frozenset[str]


# ---- the reader ----------------------------------------------------------------------------------------------------


class Inliner:
    """Reads functions and writes lines. One per kernel."""

    def __init__(self) -> None:
        self.lines: list[Line] = []
        self.faults: list[str] = []
        """Names of booleans: Python would raise here."""
        self.parameters: dict[str, Num] = {}
        """Dotted path -> number, in order of first use."""
        self._known: dict[str, str] = {}
        self._integers: dict[str, str] = {}
        """Name -> the same number as an integer of the code."""
        self._placed: dict[int, str] = {}
        """Window -> the number that was last written behind it."""
        self._path: tuple[_Guarded, ...] = ()
        self._where: list[tuple[str, ast.AST | None]] = []
        self._function: types.FunctionType | None = None
        self._count = 0

    # -- writing --

    def emit(self, text: str) -> str:
        """A name for the value of an expression; the same name when it was computed before."""
        if text not in self._known:
            self._count += 1
            name = f"v{self._count}"
            self.lines.append(Line(name, text))
            self._known[text] = name
        return self._known[text]

    def number(self, value: Any) -> Num:
        """A value as a number of the candidate; booleans become 0 and 1."""
        if isinstance(value, Const):
            return _literal(value.value, self)
        if isinstance(value, Num):
            if value.truth:
                return Num(self.emit(f"select({value.code}, 1.0, 0.0)"), True, 0.0, 1.0)
            return value
        raise self.refusal(f"{_described(value)} is used as a number")

    def condition(self, value: Any) -> Num | bool:
        """A value as a test: known while reading, or a boolean of the candidate."""
        if isinstance(value, Const):
            return bool(value.value)
        if isinstance(value, Num):
            if value.truth:
                return value
            return Num(self.emit(f"{value.code} != 0.0"), truth=True, if_true=frozenset({value.code}))
        if isinstance(value, Items):
            return bool(value.values)
        raise self.refusal(f"{_described(value)} is used as a condition")

    def select(self, test: Num, yes: Any, no: Any) -> Any:
        """`yes if test else no`, field by field."""
        if (type(yes) is type(no) and yes == no) or isinstance(no, Nothing):
            return yes
        if isinstance(yes, Nothing):
            return no
        if isinstance(yes, Record) and isinstance(no, Record) and yes.cls is no.cls:
            return Record(yes.cls, self._select_each(test, yes.values, no.values))
        if isinstance(yes, Items) and isinstance(no, Items) and len(yes.values) == len(no.values):
            return Items(self._select_each(test, yes.values, no.values))
        if isinstance(yes, Window) and isinstance(no, Window) and yes.field == no.field:
            moved = self._truth_select(test.code, yes.moved, no.moved)
            added = yes.added if no.added is None else no.added if yes.added is None else None
            if added is None and yes.added is not None and no.added is not None:
                added = self.select(test, yes.added, no.added)
            return Window(yes.field, added, moved)
        if isinstance(yes, (Num, Const)) and isinstance(no, (Num, Const)):
            if _is_truth(yes) and _is_truth(no):
                return self._truth(self._truth_select(test.code, self._truth_code(yes), self._truth_code(no)))
            a, b = self.number(yes), self.number(no)
            if a.code == b.code:
                return a
            return Num(
                self.emit(f"select({test.code}, {a.code}, {b.code})"),
                a.whole and b.whole,
                min(a.low, b.low),
                max(a.high, b.high),
                real=a.real and b.real,
            )
        raise self.refusal(f"either {_described(yes)} or {_described(no)}, depending on a number")

    def _select_each(self, test: Num, yes: tuple[Any, ...], no: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(self.select(test, a, b) for a, b in zip(yes, no, strict=True))

    def _truth(self, code: str) -> Num | Const:
        return Const(code == "True") if code in ("True", "False") else Num(code, truth=True)

    def _truth_code(self, value: Num | Const) -> str:
        return str(value.value) if isinstance(value, Const) else value.code

    def _truth_select(self, test: str, yes: str, no: str) -> str:
        if yes == no:
            return yes
        return self._or(self._and(test, yes), self._and(self._not(test), no))

    def _and(self, a: str, b: str) -> str:
        if "False" in (a, b):
            return "False"
        return b if a == "True" else a if b == "True" or a == b else self.emit(f"{a} & {b}")

    def _or(self, a: str, b: str) -> str:
        if "True" in (a, b):
            return "True"
        return b if a == "False" else a if b == "False" or a == b else self.emit(f"{a} | {b}")

    def _not(self, a: str) -> str:
        return {"True": "False", "False": "True"}.get(a) or self.emit(f"not {a}")

    def fault(self, when: str) -> None:
        """Python would raise where this boolean holds, if this path is taken."""
        for guarded in self._path:
            when = self._and(when, guarded.code if guarded.wanted else self._not(guarded.code))
        if when != "False" and when not in self.faults:
            self.faults.append(when)

    @contextmanager
    def _if(self, test: Num, wanted: bool) -> Iterator[None]:
        saved = self._path
        self._path = (*saved, _Guarded(test.code, wanted, test.if_true if wanted else test.if_false))
        yield
        self._path = saved

    # -- refusing --

    def refusal(self, what: str) -> CannotInline:
        """The error that names component, line and construct."""
        for who, node in reversed(self._where):
            if node is not None and hasattr(node, "lineno"):
                return CannotInline(f"{who}, line {node.lineno}: {what}")
        return CannotInline(f"{self._where[-1][0] if self._where else 'guard'}: {what}")

    # -- functions --

    def call(self, function: types.FunctionType, args: Sequence[Any], kwargs: dict[str, Any] | None = None) -> Any:
        """Inline a Python function; its value on these arguments."""
        if len(self._where) > _DEPTH:
            raise self.refusal("calls nested too deep, or recursive")
        tree = _source(function, self)
        names = self._bind(function, tree, list(args), dict(kwargs or {}))
        self._where.append((function.__qualname__, None))
        caller, self._function = self._function, function
        outcome = self._block(tree.body, names)
        if outcome.returned != "True":
            raise CannotInline(f"{function.__qualname__}: a path ends without a return")
        self._where.pop()
        self._function = caller
        return outcome.value

    def _bind(
        self, function: types.FunctionType, tree: ast.FunctionDef, args: list[Any], kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        spec = tree.args
        if spec.vararg or spec.kwarg:
            raise self.refusal(f"{function.__qualname__} takes *args or **kwargs")
        positional = [a.arg for a in spec.posonlyargs + spec.args]
        if len(args) > len(positional):
            raise self.refusal(f"{function.__qualname__} is given {len(args)} arguments")
        names = dict(zip(positional, args, strict=False))
        for name, value in kwargs.items():
            if name in names or name not in positional + [a.arg for a in spec.kwonlyargs]:
                raise self.refusal(f"{function.__qualname__} is given an argument {name!r} that does not fit")
            names[name] = value
        defaults = function.__defaults__ or ()
        for name, value in zip(positional[len(positional) - len(defaults) :], defaults, strict=True):
            names.setdefault(name, self.wrap(value))
        for name, value in (function.__kwdefaults__ or {}).items():
            names.setdefault(name, self.wrap(value))
        missing = [name for name in positional + [a.arg for a in spec.kwonlyargs] if name not in names]
        if missing:
            raise self.refusal(f"{function.__qualname__} lacks argument {', '.join(missing)}")
        return names

    # -- statements --

    def _block(self, body: Sequence[ast.stmt], names: dict[str, Any]) -> _Outcome:
        returned, value = "False", Nothing()
        saved = self._path
        for statement in body:
            self._where[-1] = (self._where[-1][0], statement)
            done = self._statement(statement, names)
            names = done.names
            if done.returned != "False":
                earlier = Num(returned, truth=True)
                value = done.value if returned == "False" else self.select(earlier, value, done.value)
                returned = self._or(returned, done.returned)
                if done.returned == "True":
                    returned = "True"
                    break
                self._path = (*self._path, _Guarded(done.returned, False, frozenset()))
        self._path = saved
        return _Outcome(names, returned, value)

    def _statement(self, node: ast.stmt, names: dict[str, Any]) -> _Outcome:
        going = _Outcome(names, "False", Nothing())
        match node:
            case ast.Return(value=value):
                return _Outcome(names, "True", Const(None) if value is None else self.eval(value, names))
            case ast.Assign(targets=targets, value=value):
                found = self.eval(value, names)
                for target in targets:
                    self._assign(target, found, names)
            case ast.AnnAssign(target=target, value=value):
                if value is not None:
                    self._assign(target, self.eval(value, names), names)
            case ast.AugAssign(target=ast.Name(id=name), op=op, value=value):
                names[name] = self._binary(op, self._lookup(name, names), self.eval(value, names))
            case ast.If(test=test, body=body, orelse=orelse):
                return self._branch(test, body, orelse, names)
            case ast.For():
                self._loop(node, names)
            case ast.Assert(test=test):
                holds = self.condition(self.eval(test, names))
                self.fault(str(not holds) if isinstance(holds, bool) else self._not(holds.code))
            case ast.Raise():
                self.fault("True")
                return _Outcome(names, "True", Nothing())
            case ast.Pass() | ast.Expr(value=ast.Constant()):
                pass
            case _:
                raise self.refusal(f"{type(node).__name__.lower()} has no compiled form")
        return going

    def _assign(self, target: ast.expr, value: Any, names: dict[str, Any]) -> None:
        match target:
            case ast.Name(id=name):
                names[name] = value
            case ast.Tuple(elts=targets) | ast.List(elts=targets):
                values = value.values if isinstance(value, (Items, Record)) else None
                if values is None or len(values) != len(targets):
                    raise self.refusal(f"{_described(value)} is unpacked into {len(targets)} names")
                for one, item in zip(targets, values, strict=True):
                    self._assign(one, item, names)
            case _:
                raise self.refusal(f"assignment to {ast.unparse(target)}; steps are pure")

    def _branch(
        self, test: ast.expr, body: Sequence[ast.stmt], orelse: Sequence[ast.stmt], names: dict[str, Any]
    ) -> _Outcome:
        where = self._where[-1]
        holds = self.condition(self.eval(test, names))
        if isinstance(holds, bool):
            return self._block(body if holds else orelse, names)
        with self._if(holds, True):
            yes = self._block(body, dict(names))
        with self._if(holds, False):
            no = self._block(orelse, dict(names))
        self._where[-1] = where
        if yes.returned == "True" and no.returned == "True":
            return _Outcome({}, "True", self.select(holds, yes.value, no.value))
        value = self.select(holds, yes.value, no.value) if yes.returned != "False" != no.returned else (
            yes.value if yes.returned != "False" else no.value
        )  # fmt: skip
        returned = self._truth_select(holds.code, yes.returned, no.returned)
        if yes.returned == "True":
            return _Outcome(no.names, returned, value)
        if no.returned == "True":
            return _Outcome(yes.names, returned, value)
        merged = {}
        for name in yes.names:
            # a name that only one branch has bound is unbound after it: reading it is refused
            if name in no.names:
                merged[name] = self._merge(holds, yes.names[name], no.names[name])
        return _Outcome(merged, returned, value)

    def _merge(self, test: Num, yes: Any, no: Any) -> Any:
        try:
            return self.select(test, yes, no)
        except CannotInline as reason:
            return reason  # refused when it is read

    def _loop(self, node: ast.For, names: dict[str, Any]) -> None:
        if node.orelse:
            raise self.refusal("for … else")
        over = self._iterated(node.iter, names)
        if isinstance(over, Items):
            for item in over.values:
                self._assign(node.target, item, names)
                done = self._block(node.body, names)
                if done.returned != "False":
                    raise self.refusal("return inside a loop")
                if done.names is not names:
                    names.clear()
                    names.update(done.names)
            return
        self._running_loop(node, over, names)

    def _iterated(self, node: ast.expr, names: dict[str, Any]) -> Any:
        match node:
            case ast.Call(func=ast.Name(id="range"), args=args, keywords=[]):
                bounds = [self.eval(arg, names) for arg in args]
                if all(isinstance(b, Const) and isinstance(b.value, int) for b in bounds):
                    found = range(*(b.value for b in bounds))
                    if len(found) <= 64:
                        return Items(tuple(Const(i) for i in found))
                    return ("range", str(found.start), str(found.stop), str(found.step))
                if len(bounds) <= 2 and all(isinstance(b, (Num, Const)) and self.number(b).whole for b in bounds):
                    start, stop = ["0", *(self._integer(self.number(b)) for b in bounds)][-2:]
                    return ("range", start, stop, "1")
                raise self.refusal("range() over numbers that are not whole")
            case ast.Call(func=ast.Name(id="zip"), args=args):
                views = [self._as_view(self.eval(arg, names)) for arg in args]
                return ("zip", views)
        found = self.eval(node, names)
        if isinstance(found, (Items, Record)):
            return Items(tuple(found.values))
        return ("zip", [self._as_view(found)])

    def _integer(self, number: Num) -> str:
        """A whole number as an integer expression of the code."""
        return self._integers.get(number.code, f"int({number.code})")

    def _running_loop(self, node: ast.For, over: Any, names: dict[str, Any]) -> None:
        changed = {
            n.id
            for n in ast.walk(ast.Module(node.body, []))
            if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
        }
        carried = {}
        for name in sorted(changed & set(names)):
            number = self.number(names[name])
            self._count += 1
            variable = f"c{self._count}"
            self.lines.append(Line(variable, number.code))
            carried[name] = variable
        self._count += 1
        index = f"i{self._count}"
        outer_lines, outer_known, self.lines = self.lines, self._known, []
        self._known = dict(outer_known)
        inside = {**names, **{name: Num(variable) for name, variable in carried.items()}}
        if over[0] == "range":
            header = f"for {index} in range({over[1]}, {over[2]}, {over[3]}):"
            code = self.emit(f"float({index})")
            self._integers[code] = index
            self._assign(node.target, Num(code, True, 0.0 if over[1] == "0" else -inf), inside)
        else:
            views = over[1]
            length = views[0].length
            for view in views[1:]:
                length = f"min({length}, {view.length})"
            header = f"for {index} in range({length}):"
            items = [Num(self.emit(f"win[{view.start} + {index}]")) for view in views]
            self._assign(node.target, items[0] if len(items) == 1 else Items(tuple(items)), inside)
        outer_faults, self.faults = self.faults, []
        placed = dict(self._placed)
        done = self._block(node.body, inside)
        if done.returned != "False":
            raise self.refusal("return inside a loop over a window")
        ends = []
        for name, variable in carried.items():
            if isinstance(done.names.get(name), CannotInline):
                raise done.names[name]
            ends.append((variable, self.number(done.names[name]).code))
        if self._placed != placed:
            raise self.refusal("a window is moved and read inside a loop")
        raised, self.faults = self.faults, outer_faults
        if raised:
            self._count += 1
            flag = f"c{self._count}"
            outer_lines.append(Line(flag, "0.0"))
            ends += [(flag, self.emit(f"select({code}, 1.0, {flag})")) for code in raised]
        # all ends are computed before any is assigned: a, b = b, a
        temporary = []
        for variable, code in ends:
            self._count += 1
            self.lines.append(Line(f"e{self._count}", code))
            temporary.append((variable, f"e{self._count}"))
        self.lines += [Line(variable, code) for variable, code in temporary]
        body, self.lines, self._known = tuple(self.lines), outer_lines, outer_known
        self.lines.append(Line("", header, body))
        if raised:
            self.faults.append(self.emit(f"{flag} != 0.0"))
        for name, variable in carried.items():
            names[name] = Num(variable)
        targets = {n.id for n in ast.walk(node.target) if isinstance(n, ast.Name)}
        for name in (changed | targets) - set(carried):
            names.pop(name, None)

    # -- expressions --

    def eval(self, node: ast.expr, names: dict[str, Any]) -> Any:
        """The value of an expression."""
        match node:
            case ast.Constant(value=value):
                return Const(value)
            case ast.Name(id=name):
                return self._lookup(name, names)
            case ast.Attribute(value=value, attr=attr):
                return self._attribute(self.eval(value, names), attr)
            case ast.BinOp(left=left, op=op, right=right):
                return self._binary(op, self.eval(left, names), self.eval(right, names))
            case ast.UnaryOp(op=op, operand=operand):
                return self._unary(op, self.eval(operand, names))
            case ast.Compare(left=left, ops=ops, comparators=comparators):
                return self._comparison(left, ops, comparators, names)
            case ast.BoolOp(op=op, values=values):
                return self._boolean(isinstance(op, ast.And), values, names)
            case ast.IfExp(test=test, body=body, orelse=orelse):
                holds = self.condition(self.eval(test, names))
                if isinstance(holds, bool):
                    return self.eval(body if holds else orelse, names)
                with self._if(holds, True):
                    yes = self.eval(body, names)
                with self._if(holds, False):
                    no = self.eval(orelse, names)
                return self.select(holds, yes, no)
            case ast.Tuple(elts=elts):
                return self._tuple(elts, names)
            case ast.Call():
                return self._call(node, names)
            case ast.Subscript(value=value, slice=index):
                return self._subscript(self.eval(value, names), index, names)
            case ast.NamedExpr():
                raise self.refusal("a := assignment inside an expression")
        raise self.refusal(f"{type(node).__name__}: {ast.unparse(node)[:60]} has no compiled form")

    def _lookup(self, name: str, names: dict[str, Any]) -> Any:
        if name in names:
            if isinstance(names[name], CannotInline):
                raise names[name]
            return names[name]
        function = self._function
        assert function is not None
        if name in function.__code__.co_varnames or name in function.__code__.co_cellvars:
            raise self.refusal(f"name {name!r} is not bound on every path that leads here")
        if name in function.__globals__:
            return self.wrap(function.__globals__[name])
        if hasattr(builtins, name):
            return Known(getattr(builtins, name))
        raise self.refusal(f"name {name!r} is unknown")

    def wrap(self, value: Any) -> Any:
        """A Python object as a value."""
        if value is None or isinstance(value, (bool, int, float, str, enum.Enum)):
            return Const(value)
        if isinstance(value, tuple):
            items = tuple(self.wrap(item) for item in value)
            return Record(type(value), items) if hasattr(value, "_fields") else Items(items)
        if hasattr(value, "__component__") and not isinstance(value, type):
            raise self.refusal(f"component {type(value).__name__} is used without being a declared part")
        return Known(value)

    def _attribute(self, owner: Any, attr: str) -> Any:
        if isinstance(owner, Record):
            if attr in owner.cls._fields:  # type: ignore[attr-defined]
                return owner.values[owner.cls._fields.index(attr)]  # type: ignore[attr-defined]
            if attr == "_replace":
                return Replace(owner)
            found = getattr(owner.cls, attr, None)
            if isinstance(found, property) and isinstance(found.fget, types.FunctionType):
                return self.call(found.fget, [owner])
            if isinstance(found, types.FunctionType):
                return Method(found, owner)
        elif isinstance(owner, Part):
            return self._part_attribute(owner, attr)
        elif isinstance(owner, Known):
            if isinstance(owner.value, (types.ModuleType, type)) and hasattr(owner.value, attr):
                return self.wrap(getattr(owner.value, attr))
        elif isinstance(owner, Const) and isinstance(owner.value, enum.Enum) and attr in ("value", "name"):
            return Const(getattr(owner.value, attr))
        raise self.refusal(f"attribute {attr!r} of {_described(owner)}")

    def _part_attribute(self, owner: Part, attr: str) -> Any:
        path = f"{owner.path}.{attr}" if owner.path else attr
        kind = type(owner.value)
        fields = {f.name: f for f in dataclasses.fields(kind)}
        if attr in fields:
            value = getattr(owner.value, attr)
            info = fields[attr].metadata.get("param")
            if info is not None:
                if path not in self.parameters:
                    name = f"p{len(self.parameters)}"
                    self.parameters[path] = Num(name, info.integer, float(info.low), float(info.high), real=True)
                return self.parameters[path]
            if hasattr(value, "__component__") or (dataclasses.is_dataclass(value) and not isinstance(value, type)):
                return Part(value, path)
            if value is None or isinstance(value, (bool, int, float, str, enum.Enum)):
                return Const(value)
            raise self.refusal(f"field {attr!r} of {kind.__name__} is a {type(value).__name__}, not a parameter")
        found = inspect.getattr_static(kind, attr, None)
        if isinstance(found, property) and isinstance(found.fget, types.FunctionType):
            return self.call(found.fget, [owner])
        if isinstance(found, staticmethod):
            return Known(found.__func__)
        if isinstance(found, types.FunctionType):
            return Method(found, owner)
        if isinstance(found, (bool, int, float, str, enum.Enum, tuple, frozenset)):
            return self.wrap(found)
        raise self.refusal(f"attribute {attr!r} of {kind.__name__}")

    def _unary(self, op: ast.unaryop, value: Any) -> Any:
        if isinstance(op, ast.Not):
            holds = self.condition(value)
            if isinstance(holds, bool):
                return Const(not holds)
            return Num(self._not(holds.code), truth=True, if_true=holds.if_false, if_false=holds.if_true)
        if isinstance(value, Const):
            return self._folded({ast.USub: operator.neg, ast.UAdd: operator.pos}.get(type(op)), value)
        number = self.number(value)
        if isinstance(op, ast.UAdd):
            return number
        if isinstance(op, ast.USub):
            return Num(self.emit(f"-{number.code}"), number.whole, -number.high, -number.low, real=number.real)
        raise self.refusal("~ on a number")

    def _folded(self, function: Any, *values: Const) -> Const:
        if function is None:
            raise self.refusal("an operator that has no compiled form")
        try:
            return Const(function(*(value.value for value in values)))
        except (ArithmeticError, TypeError, ValueError) as error:
            raise self.refusal(f"constants that raise {type(error).__name__}") from None

    def _binary(self, op: ast.operator, left: Any, right: Any) -> Any:
        kind = type(op)
        if isinstance(left, Const) and isinstance(right, Const):
            return self._folded(_FOLDED.get(kind), left, right)
        if kind is ast.Add and isinstance(left, (Items, View, Window)) and isinstance(right, (Items, View, Window)):
            return self._joined([left, right])
        if kind is ast.BitAnd or kind is ast.BitOr:
            if not (_is_truth(left) and _is_truth(right)):
                raise self.refusal("& or | on numbers")
            join = self._and if kind is ast.BitAnd else self._or
            return self._truth(join(self._truth_code(left), self._truth_code(right)))
        if kind is ast.Pow:
            raise self.refusal("** differs between machines by a rounding; write x * x")
        if kind not in (ast.Add, ast.Sub, ast.Mult, ast.Div):
            raise self.refusal(f"operator {kind.__name__} on numbers")
        a, b = self.number(left), self.number(right)
        whole = a.whole and b.whole and kind is not ast.Div
        if kind is ast.Add:
            low, high = _sum(a.low, b.low, -inf), _sum(a.high, b.high, inf)
            return self._made(f"{a.code} + {b.code}", whole, low, high, a, b)
        if kind is ast.Sub:
            low, high = _sum(a.low, -b.high, -inf), _sum(a.high, -b.low, inf)
            return self._made(f"{a.code} - {b.code}", whole, low, high, a, b)
        if kind is ast.Mult:
            ends = [x * y if x * y == x * y else 0.0 for x in (a.low, a.high) for y in (b.low, b.high)]
            low, high = (0.0 if left == right else min(ends)), max(ends)
            return self._made(f"{a.code} * {b.code}", whole, low, high, a, b)
        self._check_divisor(b)
        low, high = -inf, inf
        if a.low >= 0.0 and b.low >= 0.0:
            low = 0.0 if b.high in (0.0, inf) or a.low == inf else a.low / b.high
            high = a.high / b.low if b.low > 0.0 and a.high < inf else inf
        elif b.low > 0.0 and a.low > -inf and a.high < inf:
            low, high = min(a.low / b.low, a.low / b.high), max(a.high / b.low, a.high / b.high)
        return self._made(f"{a.code} / {b.code}", False, low, high, a, b)

    def _made(self, text: str, whole: bool, low: float, high: float, a: Num, b: Num) -> Num:
        """What became of two numbers. Where no end is infinite, inf - inf, 0 * inf and 0 / 0 cannot have come up."""
        real = a.real and b.real and max(map(abs, (a.low, a.high, b.low, b.high, low, high))) < inf
        return Num(self.emit(text), whole, low, high, real=real)

    def _check_divisor(self, divisor: Num) -> None:
        if divisor.low > 0.0 or divisor.high < 0.0 or any(divisor.code in g.nonzero for g in self._path):
            return
        self.fault(self.emit(f"{divisor.code} == 0.0"))

    def _comparison(
        self, left: ast.expr, ops: Sequence[ast.cmpop], comparators: Sequence[ast.expr], names: dict[str, Any]
    ) -> Any:
        a = self.eval(left, names)
        result: Any = Const(True)
        for op, comparator in zip(ops, comparators, strict=True):
            b = self.eval(comparator, names)
            result = self._both(result, self._compared(op, a, b))
            a = b
        return result

    def _both(self, a: Any, b: Any) -> Any:
        if isinstance(a, Const):
            return b if a.value else Const(False)
        if isinstance(b, Const):
            return a if b.value else Const(False)
        return Num(self._and(a.code, b.code), truth=True, if_true=a.if_true | b.if_true)

    def _compared(self, op: ast.cmpop, a: Any, b: Any) -> Any:
        if isinstance(op, (ast.In, ast.NotIn)):
            members = b.value if isinstance(b, Known) else [v.value for v in b.values] if (
                isinstance(b, Items) and all(isinstance(v, Const) for v in b.values)
            ) else None  # fmt: skip
            if not isinstance(members, (set, frozenset, list, tuple)):
                raise self.refusal("`in` something that is not a set or tuple of constants")
            found = "False"
            for member in sorted(members):
                equal = self._compared(ast.Eq(), a, Const(member))
                found = self._or(found, self._truth_code(equal))
            return self._truth(found if isinstance(op, ast.In) else self._not(found))
        if isinstance(op, (ast.Is, ast.IsNot)):
            if isinstance(a, (Const, Num)) and isinstance(b, Const) and b.value is None:
                same = isinstance(a, Const) and a.value is None
                return Const(same if isinstance(op, ast.Is) else not same)
            raise self.refusal("`is` on numbers; write ==")
        if isinstance(a, Const) and isinstance(b, Const):
            return self._folded(_COMPARED[type(op)][1], a, b)
        if (isinstance(a, Const) and a.value is None) or (isinstance(b, Const) and b.value is None):
            raise self.refusal("a number is compared with None")
        x, y = self.number(a), self.number(b)
        foregone = _foregone(_COMPARED[type(op)][0], x, y)
        if foregone is not None:
            return Const(foregone)
        code = self.emit(f"{x.code} {_COMPARED[type(op)][0]} {y.code}")
        true, false = set(), set()
        for number, other, symbol in ((x, y, _COMPARED[type(op)][0]), (y, x, _MIRRORED[_COMPARED[type(op)][0]])):
            # nan fails every comparison, and is not zero
            if (symbol == ">" and other.low >= 0.0) or (symbol == ">=" and other.low > 0.0):
                true.add(number.code)
            if (symbol == "<" and other.high <= 0.0) or (symbol == "<=" and other.high < 0.0):
                true.add(number.code)
            if symbol == "!=" and other.code == "0.0":
                true.add(number.code)
            if symbol == "==" and other.code == "0.0":
                false.add(number.code)
            if symbol == "<=" and other.code == "0.0":
                false.add(number.code)
        return Num(code, truth=True, if_true=frozenset(true), if_false=frozenset(false))

    def _boolean(self, conjunction: bool, values: Sequence[ast.expr], names: dict[str, Any]) -> Any:
        first = self.eval(values[0], names)
        if len(values) == 1:
            return first
        holds = self.condition(first)
        if isinstance(holds, bool):
            if holds != conjunction:
                return first
            return self._boolean(conjunction, values[1:], names)
        with self._if(holds, conjunction):
            rest = self._boolean(conjunction, values[1:], names)
        if not _is_truth(first) or not _is_truth(rest):
            # `x or y` gives x or y itself: same truth, but another value
            rest_holds = self.condition(rest)
            if not (_is_truth(first) and isinstance(rest_holds, Num)) or not _is_truth(rest):
                raise self.refusal("`and`/`or` on numbers; compare them")
        other = self.condition(rest)
        if isinstance(other, bool):
            return holds if other == conjunction else Const(other)
        join = self._and if conjunction else self._or
        return Num(
            join(holds.code, other.code),
            truth=True,
            if_true=holds.if_true | other.if_true if conjunction else frozenset(),
            if_false=frozenset() if conjunction else holds.if_false | other.if_false,
        )

    def _tuple(self, elts: Sequence[ast.expr], names: dict[str, Any]) -> Any:
        pieces: list[Any] = []
        for element in elts:
            if isinstance(element, ast.Starred):
                pieces.append(self.eval(element.value, names))
            else:
                pieces.append(Items((self.eval(element, names),)))
        return self._joined(pieces) if any(isinstance(e, ast.Starred) for e in elts) else Items(
            tuple(p.values[0] for p in pieces)
        )  # fmt: skip

    def _joined(self, pieces: Sequence[Any]) -> Any:
        if all(isinstance(piece, (Items, Record)) for piece in pieces):
            return Items(tuple(value for piece in pieces for value in piece.values))
        if (
            len(pieces) == 2
            and isinstance(pieces[0], View)
            and isinstance(pieces[1], Items)
            and len(pieces[1].values) == 1
        ):
            window = pieces[0].window
            if window.added is None and pieces[0].start == f"first{window.field} + 1":
                return Window(window.field, self.number(pieces[1].values[0]), "True")
        raise self.refusal("a window may only be moved by one: window[1:] + (x,), once in a step")

    def _as_view(self, value: Any) -> View:
        """A window's numbers, placed in memory so that code can read them."""
        if isinstance(value, View):
            return value
        if isinstance(value, Window):
            field = value.field
            start = f"first{field}"
            if value.added is not None and self._placed.get(field) == value.added.code:
                start = start + " + 1" if value.moved == "True" else f"{start} + int({value.moved})"
            elif value.added is not None:
                self._placed[field] = value.added.code
                # its slot lies just behind the old window, so that writing it hurts nobody who reads that one
                self.lines.append(Line(f"win[first{field} + length{field}]", value.added.code))
                start = start + " + 1" if value.moved == "True" else f"{start} + int({value.moved})"
                # what was read before it was written must be read again
                self._known = {k: v for k, v in self._known.items() if "win[" not in k}
            return View(value, start, f"length{field}", f"float(length{field})")
        raise self.refusal(f"{_described(value)} is used as a window")

    def _subscript(self, owner: Any, index: ast.expr, names: dict[str, Any]) -> Any:
        if isinstance(owner, (Items, Record)):
            if isinstance(index, ast.Slice):
                ends = [None if e is None else self.eval(e, names) for e in (index.lower, index.upper, index.step)]
                if all(e is None or isinstance(e, Const) for e in ends):
                    return Items(owner.values[slice(*(None if e is None else e.value for e in ends))])
            else:
                where = self.eval(index, names)
                if isinstance(where, Const) and isinstance(where.value, int):
                    try:
                        return owner.values[where.value]
                    except IndexError:
                        raise self.refusal(f"index {where.value} of a tuple of {len(owner.values)}") from None
            raise self.refusal("a tuple indexed by something that is not a constant")
        if isinstance(owner, Window):
            if isinstance(index, ast.Slice):
                match index:
                    case ast.Slice(lower=ast.Constant(value=int(first)), upper=None, step=None) if first >= 0:
                        view = self._as_view(owner)
                        start = f"{view.start} + {first}" if first else view.start
                        length = f"max(0, {view.length} - {first})"
                        return View(owner, start, length, f"float({length})")
                raise self.refusal("a slice of a window other than window[k:]")
            where = self.eval(index, names)
            if isinstance(where, Const) and isinstance(where.value, int):
                view, fixed = self._as_view(owner), where.value
                self.fault(self.emit(f"{view.length} < {fixed + 1 if fixed >= 0 else -fixed}"))
                place = f"{view.start} + {fixed}" if fixed >= 0 else f"{view.start} + {view.length} - {-fixed}"
                return Num(self.emit(f"win[{place}]"))
            number = self.number(where)
            if not number.whole:
                raise self.refusal("a window indexed by a number that is not whole")
            view = self._as_view(owner)
            at = self.emit(self._integer(number))
            # Python would count from the end, or raise; nothing outside the window may be read meanwhile
            self.fault(self.emit(f"({at} < 0) | ({at} >= {view.length})"))
            return Num(self.emit(f"win[{view.start} + max(0, min({at}, {view.length} - 1))]"))
        raise self.refusal(f"[…] on {_described(owner)}")

    # -- calls --

    def _call(self, node: ast.Call, names: dict[str, Any]) -> Any:
        function = self.eval(node.func, names)
        args: list[Any] = []
        for arg in node.args:
            if isinstance(arg, ast.Starred):
                spread = self.eval(arg.value, names)
                if not isinstance(spread, (Items, Record)):
                    raise self.refusal(f"*{_described(spread)} in a call")
                args += spread.values
            else:
                args.append(self.eval(arg, names))
        if any(keyword.arg is None for keyword in node.keywords):
            raise self.refusal("**kwargs in a call")
        kwargs = {str(keyword.arg): self.eval(keyword.value, names) for keyword in node.keywords}
        where = self._where[-1]
        result = self._called(function, args, kwargs)
        self._where[-1] = where
        return result

    def _called(self, function: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
        if isinstance(function, Method):
            return self.call(function.function, [function.owner, *args], kwargs)
        if isinstance(function, Replace):
            record = function.record
            fields = record.cls._fields  # type: ignore[attr-defined]
            if args or any(name not in fields for name in kwargs):
                raise self.refusal("_replace with a field that is not there")
            return Record(record.cls, tuple(kwargs.get(f, v) for f, v in zip(fields, record.values, strict=True)))
        if not isinstance(function, Known):
            raise self.refusal(f"a call of {_described(function)}")
        target = function.value
        if isinstance(target, type) and issubclass(target, tuple) and hasattr(target, "_fields"):
            return self._record(target, args, kwargs)
        if target in _MATH or target in (min, max, abs, int, float, bool, len, tuple):
            if kwargs:
                raise self.refusal(f"{target.__name__} with keyword arguments")
            return self._split_or_joined(target, args) if target in _BITS else self._builtin(target, args)
        if target is sum:
            raise self.refusal("sum() of floats rounds differently from Python 3.12 on; add in a loop")
        if isinstance(target, types.FunctionType):
            return self.call(target, args, kwargs)
        raise self.refusal(f"a call of {getattr(target, '__qualname__', target)!s}")

    def _record(self, cls: Any, args: list[Any], kwargs: dict[str, Any]) -> Record:
        values = dict(zip(cls._fields, args, strict=False))
        if len(args) > len(cls._fields) or set(kwargs) & set(values) or not set(kwargs) <= set(cls._fields):
            raise self.refusal(f"{cls.__name__} with arguments that do not fit")
        values |= kwargs
        for name, default in cls._field_defaults.items():
            values.setdefault(name, self.wrap(default))
        if len(values) != len(cls._fields):
            raise self.refusal(f"{cls.__name__} without {', '.join(set(cls._fields) - set(values))}")
        return Record(cls, tuple(values[name] for name in cls._fields))

    def _builtin(self, target: Any, args: list[Any]) -> Any:
        name = target.__name__
        if target is len and len(args) == 1:
            if isinstance(args[0], (Items, Record)):
                return Const(len(args[0].values))
            return Num(self.emit(self._as_view(args[0]).length_is), True, 0.0)
        if target is tuple:
            if len(args) == 1 and isinstance(args[0], (Window, Items)):
                return args[0]
            raise self.refusal("tuple(…)")
        if target in (min, max) and len(args) == 1 and isinstance(args[0], (Items, Record)):
            args = list(args[0].values)
        if target in (min, max) and len(args) == 1 and isinstance(args[0], (Window, View)):
            return self._extreme(name, self._as_view(args[0]))
        if target in (min, max) and len(args) < 2:
            raise self.refusal(f"{name} of {len(args)} values")
        if target not in (min, max) and len(args) != 1:
            raise self.refusal(f"{name} of {len(args)} values")
        if all(isinstance(arg, Const) for arg in args):
            return self._folded(target, *args)
        if target in (min, max):
            best = self.number(args[0])
            for arg in args[1:]:
                best = self._better(name, best, self.number(arg))
            return best
        if target is bool:
            holds = self.condition(args[0])
            return Const(holds) if isinstance(holds, bool) else holds
        number = self.number(args[0])
        code = number.code
        if target is abs or target is math.fabs:
            high = max(abs(number.low), abs(number.high))
            low = max(0.0, number.low, -number.high)
            return Num(self.emit(f"abs({code})"), number.whole, low, high, real=number.real)
        if target is float:
            return number
        if target is math.sqrt:
            if number.low < 0.0:
                self.fault(self.emit(f"{code} < 0.0"))
            return Num(self.emit(f"math.sqrt({code})"), False, math.sqrt(max(0.0, number.low)))
        if target is math.isnan:
            return Num(self.emit(f"{code} != {code}"), truth=True)
        if target is math.isinf:
            return Num(self.emit(f"abs({code}) == inf"), truth=True)
        if target is math.isfinite:
            return Num(self.emit(f"abs({code}) < inf"), truth=True)
        if number.whole:
            return number
        if not (number.real and max(-number.low, number.high) < _LARGEST_WHOLE):
            self.fault(self._not(self.emit(f"abs({code}) < {float(_LARGEST_WHOLE)!r}")))
        how = {int: "trunc", math.trunc: "trunc", math.floor: "floor", math.ceil: "ceil"}[target]
        return Num(self.emit(f"round_{how}({code})"), True, number.low - 1.0, number.high + 1.0, real=number.real)

    def _split_or_joined(self, target: Any, args: list[Any]) -> Any:
        """`math.frexp` and `math.ldexp`, exact because they only move bits; where every number stays a normal one."""
        if len(args) != _BITS[target]:
            raise self.refusal(f"{target.__name__} of {len(args)} values")
        if all(isinstance(arg, Const) for arg in args):
            return self.wrap(self._folded(target, *args).value)
        number = self.number(args[0])
        if target is math.frexp:
            if not (number.real and number.low >= sys.float_info.min and number.high < inf):
                raise self.refusal("frexp of a number that is not bounded, by numbers above 0 and below infinity")
            low, high = math.frexp(number.low)[1], math.frexp(number.high)[1]
            return Items((
                Num(self.emit(f"fraction_of({number.code})"), False, 0.5, 1.0, real=True),
                Num(self.emit(f"exponent_of({number.code})"), True, low, high, real=True),
            ))  # fmt: skip
        exponent = self.number(args[1])
        if not (exponent.real and exponent.whole and exponent.low >= _LEAST_POWER and exponent.high <= _LARGEST_POWER):
            raise self.refusal(f"ldexp by a number that is not whole and within [{_LEAST_POWER}, {_LARGEST_POWER}]")
        # times a power of two that is itself a normal number: rounded once at most, as ldexp is
        least, most = math.ldexp(1.0, int(exponent.low)), math.ldexp(1.0, int(exponent.high))
        power = Num(self.emit(f"two_to({exponent.code})"), False, least, most, real=True)
        scaled: Num = self._binary(ast.Mult(), number, power)
        if not scaled.real:
            self.fault(self.emit(f"abs({scaled.code}) == inf"))
        return scaled

    def _better(self, name: str, a: Num, b: Num) -> Num:
        """Python's own rule: the later one only if it is strictly better, so a nan stays where it stands."""
        # the bounds hold although b may be nan: then the result is a
        low, high = (min(a.low, b.low), a.high) if name == "min" else (a.low, max(a.high, b.high))
        if b.real:
            low, high = (low, min(a.high, b.high)) if name == "min" else (max(a.low, b.low), high)
        test = self.emit(f"{b.code} {'<' if name == 'min' else '>'} {a.code}")
        return Num(self.emit(f"select({test}, {b.code}, {a.code})"), a.whole and b.whole, low, high, real=a.real)

    def _extreme(self, name: str, view: View) -> Num:
        self.fault(self.emit(f"{view.length} < 1"))
        self._count += 1
        best, index = f"c{self._count}", f"i{self._count}"
        item = f"win[{view.start} + {index}]"
        sign = "<" if name == "min" else ">"
        self.lines.append(Line(best, f"win[{view.start}]"))
        body = (Line(best, f"select({item} {sign} {best}, {item}, {best})"),)
        self.lines.append(Line("", f"for {index} in range(1, {view.length}):", body))
        return Num(best)


_FOLDED = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.BitAnd: operator.and_, ast.BitOr: operator.or_,
}  # fmt: skip
_COMPARED: dict[type, tuple[str, Any]] = {
    ast.Lt: ("<", operator.lt), ast.LtE: ("<=", operator.le), ast.Gt: (">", operator.gt),
    ast.GtE: (">=", operator.ge), ast.Eq: ("==", operator.eq), ast.NotEq: ("!=", operator.ne),
}  # fmt: skip
_MIRRORED = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "==": "==", "!=": "!="}
_BITS = {math.frexp: 1, math.ldexp: 2}
"""Functions that move a number's bits -> how many arguments they take."""
_MATH = {math.sqrt, math.fabs, math.isnan, math.isinf, math.isfinite, math.floor, math.ceil, math.trunc, *_BITS}


def _foregone(symbol: str, x: Num, y: Num) -> bool | None:
    """What a comparison gives whatever the numbers are, by their bounds. A nan compares false, but for !=."""
    never = {
        "==": x.high < y.low or y.high < x.low, "<": x.low >= y.high, "<=": x.low > y.high, ">": x.high <= y.low,
        ">=": x.high < y.low,
    }  # fmt: skip
    if symbol == "!=":
        return True if never["=="] else None
    return False if never[symbol] else None


def _sum(a: float, b: float, otherwise: float) -> float:
    total = a + b
    return total if total == total else otherwise


def _literal(value: Any, inliner: Inliner) -> Num:
    if isinstance(value, bool):
        value = int(value)
    if not isinstance(value, (int, float)):
        raise inliner.refusal(f"{value!r} is used as a number")
    whole = isinstance(value, int)
    if whole and abs(value) > _LARGEST_WHOLE:
        raise inliner.refusal(f"the whole number {value} is beyond 2**53")
    number = float(value)
    if number != number:
        return Num("nan", low=inf, high=-inf)
    code = repr(number) if abs(number) < inf else ("inf" if number > 0 else "-inf")
    return Num(code, whole, number, number, real=True)


def _is_truth(value: Any) -> bool:
    return (isinstance(value, Num) and value.truth) or (isinstance(value, Const) and isinstance(value.value, bool))


def _described(value: Any) -> str:
    match value:
        case Const(value=found):
            return repr(found)
        case Num():
            return "a number"
        case Record(cls=cls):
            return f"a {cls.__name__}"
        case Items(values=values):
            return f"a tuple of {len(values)}"
        case Window() | View():
            return "a window"
        case Known(value=found):
            return getattr(found, "__qualname__", None) or type(found).__name__
        case Part(value=found):
            return f"component {type(found).__name__}"
    return type(value).__name__.lower()


# ---- source --------------------------------------------------------------------------------------------------------


def _source(function: types.FunctionType, inliner: Inliner) -> ast.FunctionDef:
    """The tree of a function, checked to be the code that was imported and not a later edit of its file."""
    who, code = function.__qualname__, function.__code__
    if code.co_freevars:
        raise inliner.refusal(f"{who} is a closure")
    try:
        text = Path(code.co_filename).read_text(encoding="utf-8")
        tree, codes = _read_module(text)
    except (OSError, SyntaxError, ValueError):
        raise inliner.refusal(f"the source of {who} cannot be read") from None
    if code not in codes:
        raise inliner.refusal(f"the file of {who} was edited after it was imported, or is not where it was")
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name == function.__name__:
            first_line = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            if first_line == code.co_firstlineno:
                if any(ast.unparse(d) not in ("property", "staticmethod") for d in node.decorator_list):
                    raise inliner.refusal(f"{who} is decorated")
                return node
    raise inliner.refusal(f"{who} is not a plain def")


@cache
def _read_module(text: str) -> tuple[ast.Module, frozenset[types.CodeType]]:
    """The tree of a module and the code of everything in it."""
    tree = ast.parse(text)
    codes: set[types.CodeType] = set()
    waiting = [compile(text, "", "exec", dont_inherit=True)]
    while waiting:
        code = waiting.pop()
        codes.add(code)
        waiting += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return tree, frozenset(codes)


# ---- pruning -------------------------------------------------------------------------------------------------------


def names_in(text: str) -> set[str]:
    """Names of generated variables that an expression reads."""
    return set(_NAME.findall(text))


def pruned(lines: Sequence[Line], wanted: set[str]) -> list[Line]:
    """The lines on which the wanted names depend, in order. Windows are memory: what writes them is kept."""
    needed = set(wanted)
    kept = []
    for line in reversed(lines):
        inside = list(_flat(line.body))
        if {line.target, *(inner.target for inner in inside)} & needed or line.target.startswith("win["):
            needed |= names_in(line.text) | names_in(line.target)
            for inner in inside:
                needed |= names_in(inner.text) | names_in(inner.target)
            kept.append(line)
    return kept[::-1]


def needed_by(lines: Sequence[Line], wanted: set[str]) -> set[str]:
    """Every name that the wanted ones depend on, through these lines."""
    found = set(wanted)
    for line in _flat(pruned(lines, wanted)):
        found |= names_in(line.text) | names_in(line.target)
    return found


def _flat(lines: Sequence[Line]) -> Iterator[Line]:
    for line in lines:
        yield line
        yield from _flat(line.body)
