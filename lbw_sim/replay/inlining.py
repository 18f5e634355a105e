"""Turns a component's own Python step into straight-line arithmetic on numbers, by reading its source.

Calls are inlined, NamedTuples dissolve into their fields, enumeration members and module constants become literals, and
every branch becomes a choice between two values that were both computed. It refuses, naming component, line and
construct, whatever it does not fully understand, and every function with a path that does not return: nothing is
guessed. An `assert` or a `raise` on the path taken sets the fault flag, as does whatever else would raise in Python;
the caller then asks the reference engine.
"""

from __future__ import annotations

import ast
import builtins
import dataclasses
import enum
import inspect
import types
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from lbw_sim.replay.lines import Line
from lbw_sim.replay.symbolic import (
    CannotInline,
    Const,
    Items,
    Known,
    Method,
    Nothing,
    Num,
    Part,
    Record,
    Replace,
    View,
    Window,
    described,
    inf,
    is_truth,
)
from lbw_sim.replay.writing import FUNCTIONS, Condition, Writer

_DEPTH = 40


class _Outcome(NamedTuple):
    """How a block ended."""

    names: dict[str, Any]
    returned: str
    """Boolean in the code: whether it returned; "False", "True" or a name."""
    value: Any


class Inliner:
    """Reads functions and has their lines written. One per kernel."""

    def __init__(self) -> None:
        self.out = Writer()
        self.parameters: dict[str, Num] = {}
        """Dotted path -> number, in order of first use."""
        self._function: types.FunctionType | None = None

    # -- functions --

    def call(self, function: types.FunctionType, args: Sequence[Any], kwargs: dict[str, Any] | None = None) -> Any:
        """Inline a Python function; its value on these arguments."""
        if len(self.out.where) > _DEPTH:
            raise self.out.refusal("calls nested too deep, or recursive")
        tree = _source(function, self.out)
        names = self._bind(function, tree, list(args), dict(kwargs or {}))
        self.out.where.append((function.__qualname__, None))
        caller, self._function = self._function, function
        outcome = self._block(tree.body, names)
        if outcome.returned != "True":
            raise CannotInline(f"{function.__qualname__}: a path ends without a return")
        self.out.where.pop()
        self._function = caller
        return outcome.value

    def _bind(
        self, function: types.FunctionType, tree: ast.FunctionDef, args: list[Any], kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        spec = tree.args
        if spec.vararg or spec.kwarg:
            raise self.out.refusal(f"{function.__qualname__} takes *args or **kwargs")
        positional = [a.arg for a in spec.posonlyargs + spec.args]
        if len(args) > len(positional):
            raise self.out.refusal(f"{function.__qualname__} is given {len(args)} arguments")
        names = dict(zip(positional, args, strict=False))
        for name, value in kwargs.items():
            if name in names or name not in positional + [a.arg for a in spec.kwonlyargs]:
                raise self.out.refusal(f"{function.__qualname__} is given an argument {name!r} that does not fit")
            names[name] = value
        defaults = function.__defaults__ or ()
        for name, value in zip(positional[len(positional) - len(defaults) :], defaults, strict=True):
            names.setdefault(name, self.wrap(value))
        for name, value in (function.__kwdefaults__ or {}).items():
            names.setdefault(name, self.wrap(value))
        missing = [name for name in positional + [a.arg for a in spec.kwonlyargs] if name not in names]
        if missing:
            raise self.out.refusal(f"{function.__qualname__} lacks argument {', '.join(missing)}")
        return names

    # -- statements --

    def _block(self, body: Sequence[ast.stmt], names: dict[str, Any]) -> _Outcome:
        returned, value = "False", Nothing()
        saved = self.out.path
        for statement in body:
            self.out.where[-1] = (self.out.where[-1][0], statement)
            done = self._statement(statement, names)
            names = done.names
            if done.returned != "False":
                earlier = Num(returned, truth=True)
                value = done.value if returned == "False" else self.out.select(earlier, value, done.value)
                returned = self.out.either(returned, done.returned)
                if done.returned == "True":
                    returned = "True"
                    break
                self.out.path = (*self.out.path, Condition(done.returned, False, frozenset()))
        self.out.path = saved
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
                names[name] = self.out.binary(op, self._lookup(name, names), self.eval(value, names))
            case ast.If(test=test, body=body, orelse=orelse):
                return self._branch(test, body, orelse, names)
            case ast.For():
                self._loop(node, names)
            case ast.Assert(test=test):
                holds = self.out.condition(self.eval(test, names))
                self.out.fault(str(not holds) if isinstance(holds, bool) else self.out.negated(holds.code))
            case ast.Raise():
                self.out.fault("True")
                return _Outcome(names, "True", Nothing())
            case ast.Pass() | ast.Expr(value=ast.Constant()):
                pass
            case _:
                raise self.out.refusal(f"{type(node).__name__.lower()} has no compiled form")
        return going

    def _assign(self, target: ast.expr, value: Any, names: dict[str, Any]) -> None:
        match target:
            case ast.Name(id=name):
                names[name] = value
            case ast.Tuple(elts=targets) | ast.List(elts=targets):
                values = value.values if isinstance(value, (Items, Record)) else None
                if values is None or len(values) != len(targets):
                    raise self.out.refusal(f"{described(value)} is unpacked into {len(targets)} names")
                for one, item in zip(targets, values, strict=True):
                    self._assign(one, item, names)
            case _:
                raise self.out.refusal(f"assignment to {ast.unparse(target)}; steps are pure")

    def _branch(
        self, test: ast.expr, body: Sequence[ast.stmt], orelse: Sequence[ast.stmt], names: dict[str, Any]
    ) -> _Outcome:
        where = self.out.where[-1]
        holds = self.out.condition(self.eval(test, names))
        if isinstance(holds, bool):
            return self._block(body if holds else orelse, names)
        with self.out.taken(holds, True):
            yes = self._block(body, dict(names))
        with self.out.taken(holds, False):
            no = self._block(orelse, dict(names))
        self.out.where[-1] = where
        if yes.returned == "True" and no.returned == "True":
            return _Outcome({}, "True", self.out.select(holds, yes.value, no.value))
        value = self.out.select(holds, yes.value, no.value) if yes.returned != "False" != no.returned else (
            yes.value if yes.returned != "False" else no.value
        )  # fmt: skip
        returned = self.out.truth_select(holds.code, yes.returned, no.returned)
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
            return self.out.select(test, yes, no)
        except CannotInline as reason:
            return reason  # refused when it is read

    def _loop(self, node: ast.For, names: dict[str, Any]) -> None:
        if node.orelse:
            raise self.out.refusal("for … else")
        over = self._iterated(node.iter, names)
        if isinstance(over, Items):
            for item in over.values:
                self._assign(node.target, item, names)
                done = self._block(node.body, names)
                if done.returned != "False":
                    raise self.out.refusal("return inside a loop")
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
                if len(bounds) <= 2 and all(isinstance(b, (Num, Const)) and self.out.number(b).whole for b in bounds):
                    start, stop = ["0", *(self.out.integer(self.out.number(b)) for b in bounds)][-2:]
                    return ("range", start, stop, "1")
                raise self.out.refusal("range() over numbers that are not whole")
            case ast.Call(func=ast.Name(id="zip"), args=args):
                views = [self.out.as_view(self.eval(arg, names)) for arg in args]
                return ("zip", views)
        found = self.eval(node, names)
        if isinstance(found, (Items, Record)):
            return Items(tuple(found.values))
        return ("zip", [self.out.as_view(found)])

    def _running_loop(self, node: ast.For, over: Any, names: dict[str, Any]) -> None:
        changed = {
            n.id
            for n in ast.walk(ast.Module(node.body, []))
            if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
        }
        carried = {}
        for name in sorted(changed & set(names)):
            number = self.out.number(names[name])
            carried[name] = self.out.fresh("c")
            self.out.lines.append(Line(carried[name], number.code))
        index = self.out.fresh("i")
        outside = self.out.begin_loop()
        inside = {**names, **{name: Num(variable) for name, variable in carried.items()}}
        if over[0] == "range":
            header = f"for {index} in range({over[1]}, {over[2]}, {over[3]}):"
            code = self.out.emit(f"float({index})")
            self.out.integers[code] = index
            self._assign(node.target, Num(code, True, 0.0 if over[1] == "0" else -inf), inside)
        else:
            views = over[1]
            length = views[0].length
            for view in views[1:]:
                length = f"min({length}, {view.length})"
            header = f"for {index} in range({length}):"
            items = [Num(self.out.emit(f"win[{view.start} + {index}]")) for view in views]
            self._assign(node.target, items[0] if len(items) == 1 else Items(tuple(items)), inside)
        done = self._block(node.body, inside)
        if done.returned != "False":
            raise self.out.refusal("return inside a loop over a window")
        ends = []
        for name, variable in carried.items():
            if isinstance(done.names.get(name), CannotInline):
                raise done.names[name]
            ends.append((variable, self.out.number(done.names[name]).code))
        self.out.end_loop(outside, header, ends)
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
                return self.out.binary(op, self.eval(left, names), self.eval(right, names))
            case ast.UnaryOp(op=op, operand=operand):
                return self.out.unary(op, self.eval(operand, names))
            case ast.Compare(left=left, ops=ops, comparators=comparators):
                return self._comparison(left, ops, comparators, names)
            case ast.BoolOp(op=op, values=values):
                return self._boolean(isinstance(op, ast.And), values, names)
            case ast.IfExp(test=test, body=body, orelse=orelse):
                holds = self.out.condition(self.eval(test, names))
                if isinstance(holds, bool):
                    return self.eval(body if holds else orelse, names)
                with self.out.taken(holds, True):
                    yes = self.eval(body, names)
                with self.out.taken(holds, False):
                    no = self.eval(orelse, names)
                return self.out.select(holds, yes, no)
            case ast.Tuple(elts=elts):
                return self._tuple(elts, names)
            case ast.Call():
                return self._call(node, names)
            case ast.Subscript(value=value, slice=index):
                return self._subscript(self.eval(value, names), index, names)
            case ast.NamedExpr():
                raise self.out.refusal("a := assignment inside an expression")
        raise self.out.refusal(f"{type(node).__name__}: {ast.unparse(node)[:60]} has no compiled form")

    def _lookup(self, name: str, names: dict[str, Any]) -> Any:
        if name in names:
            if isinstance(names[name], CannotInline):
                raise names[name]
            return names[name]
        function = self._function
        assert function is not None
        if name in function.__code__.co_varnames or name in function.__code__.co_cellvars:
            raise self.out.refusal(f"name {name!r} is not bound on every path that leads here")
        if name in function.__globals__:
            return self.wrap(function.__globals__[name])
        if hasattr(builtins, name):
            return Known(getattr(builtins, name))
        raise self.out.refusal(f"name {name!r} is unknown")

    def wrap(self, value: Any) -> Any:
        """A Python object as a value."""
        if value is None or isinstance(value, (bool, int, float, str, enum.Enum)):
            return Const(value)
        if isinstance(value, tuple):
            items = tuple(self.wrap(item) for item in value)
            return Record(type(value), items) if hasattr(value, "_fields") else Items(items)
        if hasattr(value, "__component__") and not isinstance(value, type):
            raise self.out.refusal(f"component {type(value).__name__} is used without being a declared part")
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
        raise self.out.refusal(f"attribute {attr!r} of {described(owner)}")

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
            raise self.out.refusal(f"field {attr!r} of {kind.__name__} is a {type(value).__name__}, not a parameter")
        found = inspect.getattr_static(kind, attr, None)
        if isinstance(found, property) and isinstance(found.fget, types.FunctionType):
            return self.call(found.fget, [owner])
        if isinstance(found, staticmethod):
            return Known(found.__func__)
        if isinstance(found, types.FunctionType):
            return Method(found, owner)
        if isinstance(found, (bool, int, float, str, enum.Enum, tuple, frozenset)):
            return self.wrap(found)
        raise self.out.refusal(f"attribute {attr!r} of {kind.__name__}")

    def _comparison(
        self, left: ast.expr, ops: Sequence[ast.cmpop], comparators: Sequence[ast.expr], names: dict[str, Any]
    ) -> Any:
        a = self.eval(left, names)
        result: Any = Const(True)
        for op, comparator in zip(ops, comparators, strict=True):
            b = self.eval(comparator, names)
            result = self.out.both_hold(result, self.out.compared(op, a, b))
            a = b
        return result

    def _boolean(self, conjunction: bool, values: Sequence[ast.expr], names: dict[str, Any]) -> Any:
        first = self.eval(values[0], names)
        if len(values) == 1:
            return first
        holds = self.out.condition(first)
        if isinstance(holds, bool):
            if holds != conjunction:
                return first
            return self._boolean(conjunction, values[1:], names)
        with self.out.taken(holds, conjunction):
            rest = self._boolean(conjunction, values[1:], names)
        if not is_truth(first) or not is_truth(rest):
            # `x or y` gives x or y itself: same truth, but another value
            rest_holds = self.out.condition(rest)
            if not (is_truth(first) and isinstance(rest_holds, Num)) or not is_truth(rest):
                raise self.out.refusal("`and`/`or` on numbers; compare them")
        other = self.out.condition(rest)
        if isinstance(other, bool):
            return holds if other == conjunction else Const(other)
        join = self.out.both if conjunction else self.out.either
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
        return self.out.joined(pieces) if any(isinstance(e, ast.Starred) for e in elts) else Items(
            tuple(p.values[0] for p in pieces)
        )  # fmt: skip

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
                        raise self.out.refusal(f"index {where.value} of a tuple of {len(owner.values)}") from None
            raise self.out.refusal("a tuple indexed by something that is not a constant")
        if isinstance(owner, Window):
            if isinstance(index, ast.Slice):
                match index:
                    case ast.Slice(lower=ast.Constant(value=int(first)), upper=None, step=None) if first >= 0:
                        view = self.out.as_view(owner)
                        start = f"{view.start} + {first}" if first else view.start
                        length = f"max(0, {view.length} - {first})"
                        return View(owner, start, length, f"float({length})")
                raise self.out.refusal("a slice of a window other than window[k:]")
            return self.out.item(owner, self.eval(index, names))
        raise self.out.refusal(f"[…] on {described(owner)}")

    # -- calls --

    def _call(self, node: ast.Call, names: dict[str, Any]) -> Any:
        function = self.eval(node.func, names)
        args: list[Any] = []
        for arg in node.args:
            if isinstance(arg, ast.Starred):
                spread = self.eval(arg.value, names)
                if not isinstance(spread, (Items, Record)):
                    raise self.out.refusal(f"*{described(spread)} in a call")
                args += spread.values
            else:
                args.append(self.eval(arg, names))
        if any(keyword.arg is None for keyword in node.keywords):
            raise self.out.refusal("**kwargs in a call")
        kwargs = {str(keyword.arg): self.eval(keyword.value, names) for keyword in node.keywords}
        where = self.out.where[-1]
        result = self._called(function, args, kwargs)
        self.out.where[-1] = where
        return result

    def _called(self, function: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
        if isinstance(function, Method):
            return self.call(function.function, [function.owner, *args], kwargs)
        if isinstance(function, Replace):
            record = function.record
            fields = record.cls._fields  # type: ignore[attr-defined]
            if args or any(name not in fields for name in kwargs):
                raise self.out.refusal("_replace with a field that is not there")
            return Record(record.cls, tuple(kwargs.get(f, v) for f, v in zip(fields, record.values, strict=True)))
        if not isinstance(function, Known):
            raise self.out.refusal(f"a call of {described(function)}")
        target = function.value
        if isinstance(target, type) and issubclass(target, tuple) and hasattr(target, "_fields"):
            return self._record(target, args, kwargs)
        if target in FUNCTIONS:
            if kwargs:
                raise self.out.refusal(f"{target.__name__} with keyword arguments")
            return self.out.function(target, args)
        if target is sum:
            raise self.out.refusal("sum() of floats rounds differently from Python 3.12 on; add in a loop")
        if isinstance(target, types.FunctionType):
            return self.call(target, args, kwargs)
        raise self.out.refusal(f"a call of {getattr(target, '__qualname__', target)!s}")

    def _record(self, cls: Any, args: list[Any], kwargs: dict[str, Any]) -> Record:
        values = dict(zip(cls._fields, args, strict=False))
        if len(args) > len(cls._fields) or set(kwargs) & set(values) or not set(kwargs) <= set(cls._fields):
            raise self.out.refusal(f"{cls.__name__} with arguments that do not fit")
        values |= kwargs
        for name, default in cls._field_defaults.items():
            values.setdefault(name, self.wrap(default))
        if len(values) != len(cls._fields):
            raise self.out.refusal(f"{cls.__name__} without {', '.join(set(cls._fields) - set(values))}")
        return Record(cls, tuple(values[name] for name in cls._fields))


# ---- source --------------------------------------------------------------------------------------------------------


def _source(function: types.FunctionType, out: Writer) -> ast.FunctionDef:
    """The tree of a function, checked to be the code that was imported and not a later edit of its file."""
    who, code = function.__qualname__, function.__code__
    if code.co_freevars:
        raise out.refusal(f"{who} is a closure")
    try:
        text = Path(code.co_filename).read_text(encoding="utf-8")
        tree, codes = _read_module(text)
    except (OSError, SyntaxError, ValueError):
        raise out.refusal(f"the source of {who} cannot be read") from None
    if code not in codes:
        raise out.refusal(f"the file of {who} was edited after it was imported, or is not where it was")
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name == function.__name__:
            first_line = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            if first_line == code.co_firstlineno:
                if any(ast.unparse(d) not in ("property", "staticmethod") for d in node.decorator_list):
                    raise out.refusal(f"{who} is decorated")
                return node
    raise out.refusal(f"{who} is not a plain def")


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
