"""Writes what an operation on symbolic values becomes: lines of arithmetic, with the bounds of what they give.

Only `+ - * /`, square root, comparisons and choices between two values that were both computed, so that a compiler can
put candidates side by side in vector lanes. Where Python would raise (division by zero, square root of a negative
number, int(nan)) on the path taken, a fault flag is set. Whole numbers are held in float64, exact up to 2**53. The sign
of a zero may differ from Python's for whole numbers; no comparison and no decision can see it.
"""

from __future__ import annotations

import ast
import math
import operator
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from lbw_sim.replay.lines import Line
from lbw_sim.replay.symbolic import (
    CannotInline,
    Const,
    Items,
    Known,
    Nothing,
    Num,
    Record,
    View,
    Window,
    described,
    inf,
    is_truth,
)

_LARGEST_WHOLE = 2**53
_LEAST_POWER, _LARGEST_POWER = -1022, 1023
"""Exponents of the powers of two that are normal numbers."""
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
FUNCTIONS = {
    min, max, abs, int, float, bool, len, tuple,
    math.sqrt, math.fabs, math.isnan, math.isinf, math.isfinite, math.floor, math.ceil, math.trunc, *_BITS,
}  # fmt: skip
"""Those of Python that have a compiled form."""


class Condition(NamedTuple):
    """One condition of the path that is being read."""

    code: str
    wanted: bool
    nonzero: frozenset[str]


class _Outside(NamedTuple):
    """What stood before a loop was begun."""

    lines: list[Line]
    known: dict[str, str]
    faults: list[str]
    placed: dict[int, str]


class Writer:
    """The lines of one kernel's step, as far as they are written."""

    def __init__(self) -> None:
        self.lines: list[Line] = []
        self.faults: list[str] = []
        """Names of booleans: Python would raise here."""
        self.path: tuple[Condition, ...] = ()
        """Under which conditions what is now written counts."""
        self.where: list[tuple[str, ast.AST | None]] = []
        """Functions that are being read and the statement of each, innermost last: for refusals."""
        self.integers: dict[str, str] = {}
        """Name -> the same number as an integer of the code."""
        self._known: dict[str, str] = {}
        """Expression -> the name that holds its value."""
        self._placed: dict[int, str] = {}
        """Window -> the number that was last written behind it."""
        self._count = 0

    def fresh(self, letter: str) -> str:
        """A name that nothing has."""
        self._count += 1
        return f"{letter}{self._count}"

    def emit(self, text: str) -> str:
        """A name for the value of an expression; the same name when it was computed before."""
        if text not in self._known:
            name = self.fresh("v")
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
        raise self.refusal(f"{described(value)} is used as a number")

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
        raise self.refusal(f"{described(value)} is used as a condition")

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
            moved = self.truth_select(test.code, yes.moved, no.moved)
            added = yes.added if no.added is None else no.added if yes.added is None else None
            if added is None and yes.added is not None and no.added is not None:
                added = self.select(test, yes.added, no.added)
            return Window(yes.field, added, moved)
        if isinstance(yes, (Num, Const)) and isinstance(no, (Num, Const)):
            if is_truth(yes) and is_truth(no):
                return self.truth(self.truth_select(test.code, self.truth_code(yes), self.truth_code(no)))
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
        raise self.refusal(f"either {described(yes)} or {described(no)}, depending on a number")

    def _select_each(self, test: Num, yes: tuple[Any, ...], no: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(self.select(test, a, b) for a, b in zip(yes, no, strict=True))

    # -- booleans: "True", "False", or a name in the code --

    def truth(self, code: str) -> Num | Const:
        """A boolean as a value."""
        return Const(code == "True") if code in ("True", "False") else Num(code, truth=True)

    def truth_code(self, value: Num | Const) -> str:
        """The reverse."""
        return str(value.value) if isinstance(value, Const) else value.code

    def truth_select(self, test: str, yes: str, no: str) -> str:
        """`yes if test else no`."""
        if yes == no:
            return yes
        return self.either(self.both(test, yes), self.both(self.negated(test), no))

    def both(self, a: str, b: str) -> str:
        """`a and b`."""
        if "False" in (a, b):
            return "False"
        return b if a == "True" else a if b == "True" or a == b else self.emit(f"{a} & {b}")

    def either(self, a: str, b: str) -> str:
        """`a or b`."""
        if "True" in (a, b):
            return "True"
        return b if a == "False" else a if b == "False" or a == b else self.emit(f"{a} | {b}")

    def negated(self, a: str) -> str:
        """`not a`."""
        return {"True": "False", "False": "True"}.get(a) or self.emit(f"not {a}")

    # -- what Python would do on the path taken --

    def fault(self, when: str) -> None:
        """Python would raise where this boolean holds, if this path is taken."""
        for condition in self.path:
            when = self.both(when, condition.code if condition.wanted else self.negated(condition.code))
        if when != "False" and when not in self.faults:
            self.faults.append(when)

    @contextmanager
    def taken(self, test: Num, wanted: bool) -> Iterator[None]:
        """While it lasts, what is written counts only where the test is as wanted."""
        saved = self.path
        self.path = (*saved, Condition(test.code, wanted, test.if_true if wanted else test.if_false))
        yield
        self.path = saved

    def refusal(self, what: str) -> CannotInline:
        """The error that names component, line and construct."""
        for who, node in reversed(self.where):
            if node is not None and hasattr(node, "lineno"):
                return CannotInline(f"{who}, line {node.lineno}: {what}")
        return CannotInline(f"{self.where[-1][0] if self.where else 'guard'}: {what}")

    # -- operations --

    def integer(self, number: Num) -> str:
        """A whole number as an integer expression of the code."""
        return self.integers.get(number.code, f"int({number.code})")

    def unary(self, op: ast.unaryop, value: Any) -> Any:
        """An operator of one value."""
        if isinstance(op, ast.Not):
            holds = self.condition(value)
            if isinstance(holds, bool):
                return Const(not holds)
            return Num(self.negated(holds.code), truth=True, if_true=holds.if_false, if_false=holds.if_true)
        if isinstance(value, Const):
            return self.folded({ast.USub: operator.neg, ast.UAdd: operator.pos}.get(type(op)), value)
        number = self.number(value)
        if isinstance(op, ast.UAdd):
            return number
        if isinstance(op, ast.USub):
            return Num(self.emit(f"-{number.code}"), number.whole, -number.high, -number.low, real=number.real)
        raise self.refusal("~ on a number")

    def folded(self, function: Any, *values: Const) -> Const:
        """What a function gives on values that are known; `function`: None where an operator has no compiled form."""
        if function is None:
            raise self.refusal("an operator that has no compiled form")
        try:
            return Const(function(*(value.value for value in values)))
        except (ArithmeticError, TypeError, ValueError) as error:
            raise self.refusal(f"constants that raise {type(error).__name__}") from None

    def binary(self, op: ast.operator, left: Any, right: Any) -> Any:
        """An operator of two values."""
        kind = type(op)
        if isinstance(left, Const) and isinstance(right, Const):
            return self.folded(_FOLDED.get(kind), left, right)
        if kind is ast.Add and isinstance(left, (Items, View, Window)) and isinstance(right, (Items, View, Window)):
            return self.joined([left, right])
        if kind is ast.BitAnd or kind is ast.BitOr:
            if not (is_truth(left) and is_truth(right)):
                raise self.refusal("& or | on numbers")
            join = self.both if kind is ast.BitAnd else self.either
            return self.truth(join(self.truth_code(left), self.truth_code(right)))
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
        if divisor.low > 0.0 or divisor.high < 0.0 or any(divisor.code in condition.nonzero for condition in self.path):
            return
        self.fault(self.emit(f"{divisor.code} == 0.0"))

    def both_hold(self, a: Any, b: Any) -> Any:
        """Two comparisons, as in `a < b < c`."""
        if isinstance(a, Const):
            return b if a.value else Const(False)
        if isinstance(b, Const):
            return a if b.value else Const(False)
        return Num(self.both(a.code, b.code), truth=True, if_true=a.if_true | b.if_true)

    def compared(self, op: ast.cmpop, a: Any, b: Any) -> Any:
        """A comparison; known already where the bounds leave no choice."""
        if isinstance(op, (ast.In, ast.NotIn)):
            members = b.value if isinstance(b, Known) else [v.value for v in b.values] if (
                isinstance(b, Items) and all(isinstance(v, Const) for v in b.values)
            ) else None  # fmt: skip
            if not isinstance(members, (set, frozenset, list, tuple)):
                raise self.refusal("`in` something that is not a set or tuple of constants")
            found = "False"
            for member in sorted(members):
                equal = self.compared(ast.Eq(), a, Const(member))
                found = self.either(found, self.truth_code(equal))
            return self.truth(found if isinstance(op, ast.In) else self.negated(found))
        if isinstance(op, (ast.Is, ast.IsNot)):
            if isinstance(a, (Const, Num)) and isinstance(b, Const) and b.value is None:
                same = isinstance(a, Const) and a.value is None
                return Const(same if isinstance(op, ast.Is) else not same)
            raise self.refusal("`is` on numbers; write ==")
        if isinstance(a, Const) and isinstance(b, Const):
            return self.folded(_COMPARED[type(op)][1], a, b)
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

    def joined(self, pieces: Sequence[Any]) -> Any:
        """Tuples one behind the other. Of a window that is only its move by one."""
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

    def as_view(self, value: Any) -> View:
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
        raise self.refusal(f"{described(value)} is used as a window")

    def item(self, window: Window, where: Any) -> Num:
        """The number at a place of a window."""
        if isinstance(where, Const) and isinstance(where.value, int):
            view, fixed = self.as_view(window), where.value
            self.fault(self.emit(f"{view.length} < {fixed + 1 if fixed >= 0 else -fixed}"))
            place = f"{view.start} + {fixed}" if fixed >= 0 else f"{view.start} + {view.length} - {-fixed}"
            return Num(self.emit(f"win[{place}]"))
        number = self.number(where)
        if not number.whole:
            raise self.refusal("a window indexed by a number that is not whole")
        view = self.as_view(window)
        at = self.emit(self.integer(number))
        # Python would count from the end, or raise; nothing outside the window may be read meanwhile
        self.fault(self.emit(f"({at} < 0) | ({at} >= {view.length})"))
        return Num(self.emit(f"win[{view.start} + max(0, min({at}, {view.length} - 1))]"))

    def function(self, target: Any, args: list[Any]) -> Any:
        """One of `FUNCTIONS` of these values."""
        if target in _BITS:
            return self._split_or_joined(target, args)
        name = target.__name__
        if target is len and len(args) == 1:
            if isinstance(args[0], (Items, Record)):
                return Const(len(args[0].values))
            return Num(self.emit(self.as_view(args[0]).length_is), True, 0.0)
        if target is tuple:
            if len(args) == 1 and isinstance(args[0], (Window, Items)):
                return args[0]
            raise self.refusal("tuple(…)")
        if target in (min, max) and len(args) == 1 and isinstance(args[0], (Items, Record)):
            args = list(args[0].values)
        if target in (min, max) and len(args) == 1 and isinstance(args[0], (Window, View)):
            return self._extreme(name, self.as_view(args[0]))
        if target in (min, max) and len(args) < 2:
            raise self.refusal(f"{name} of {len(args)} values")
        if target not in (min, max) and len(args) != 1:
            raise self.refusal(f"{name} of {len(args)} values")
        if all(isinstance(arg, Const) for arg in args):
            return self.folded(target, *args)
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
            self.fault(self.negated(self.emit(f"abs({code}) < {float(_LARGEST_WHOLE)!r}")))
        how = {int: "trunc", math.trunc: "trunc", math.floor: "floor", math.ceil: "ceil"}[target]
        return Num(self.emit(f"round_{how}({code})"), True, number.low - 1.0, number.high + 1.0, real=number.real)

    def _split_or_joined(self, target: Any, args: list[Any]) -> Any:
        """`math.frexp` and `math.ldexp`, exact because they only move bits; where every number stays a normal one."""
        if len(args) != _BITS[target]:
            raise self.refusal(f"{target.__name__} of {len(args)} values")
        if all(isinstance(arg, Const) for arg in args):
            found = self.folded(target, *args).value
            return Items(tuple(map(Const, found))) if isinstance(found, tuple) else Const(found)
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
        scaled: Num = self.binary(ast.Mult(), number, power)
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
        best = self.fresh("c")
        index = f"i{best[1:]}"
        item = f"win[{view.start} + {index}]"
        sign = "<" if name == "min" else ">"
        self.lines.append(Line(best, f"win[{view.start}]"))
        body = (Line(best, f"select({item} {sign} {best}, {item}, {best})"),)
        self.lines.append(Line("", f"for {index} in range(1, {view.length}):", body))
        return Num(best)

    # -- loops --

    def begin_loop(self) -> _Outside:
        """What is written from now on goes into the body of a loop."""
        outside = _Outside(self.lines, self._known, self.faults, dict(self._placed))
        self.lines, self._known, self.faults = [], dict(self._known), []
        return outside

    def end_loop(self, outside: _Outside, header: str, ends: Sequence[tuple[str, str]]) -> None:
        """Close the body. `ends`: variables that are carried from turn to turn, and the value of each at its end."""
        if self._placed != outside.placed:
            raise self.refusal("a window is moved and read inside a loop")
        ends = list(ends)
        raised, self.faults = self.faults, outside.faults
        if raised:
            flag = self.fresh("c")
            outside.lines.append(Line(flag, "0.0"))
            ends += [(flag, self.emit(f"select({code}, 1.0, {flag})")) for code in raised]
        # all ends are computed before any is assigned: a, b = b, a
        temporary = []
        for variable, code in ends:
            held = self.fresh("e")
            self.lines.append(Line(held, code))
            temporary.append((variable, held))
        self.lines += [Line(variable, code) for variable, code in temporary]
        body, self.lines, self._known = tuple(self.lines), outside.lines, outside.known
        self.lines.append(Line("", header, body))
        if raised:
            self.faults.append(self.emit(f"{flag} != 0.0"))


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


def _literal(value: Any, out: Writer) -> Num:
    if isinstance(value, bool):
        value = int(value)
    if not isinstance(value, (int, float)):
        raise out.refusal(f"{value!r} is used as a number")
    whole = isinstance(value, int)
    if whole and abs(value) > _LARGEST_WHOLE:
        raise out.refusal(f"the whole number {value} is beyond 2**53")
    number = float(value)
    if number != number:
        return Num("nan", low=inf, high=-inf)
    code = repr(number) if abs(number) < inf else ("inf" if number > 0 else "-inf")
    return Num(code, whole, number, number, real=True)
