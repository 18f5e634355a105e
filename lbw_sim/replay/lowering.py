"""The text of a generated kernel as LLVM instructions, one for one; what becomes of them is numba's work.

numba's own way from Python to LLVM (bytecode, single assignments, type inference, arrays that may be indexed from the
end) took seven eighths of a kernel's time to compile, for text in which every name is plainly a float64, a boolean or
an int64 and every index lies inside. It refuses whatever the generator does not write.

The text of this file stands at the head of every kernel's, and so in its name: it imports nothing of this package.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.errors import LoweringError

BIT, BYTE, WHOLE, REAL = ir.IntType(1), ir.IntType(8), ir.IntType(64), ir.DoubleType()
_BINARY = {ast.Add: ("fadd", "add"), ast.Sub: ("fsub", "sub"), ast.Mult: ("fmul", "mul"), ast.Div: ("fdiv", "")}
_COMPARED = {ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!="}
_ROUNDED = {"round_floor": "floor", "round_ceil": "ceil", "round_trunc": "trunc", "sqrt": "sqrt", "abs": "fabs"}


class Array(NamedTuple):
    """Numbers in rows, without gaps."""

    first: Any
    """Pointer."""
    lengths: Sequence[Any]
    """Of each dimension."""


class Kept(NamedTuple):
    """A name that a loop assigns anew: a place in memory, which LLVM turns back into a register."""

    place: Any


class Abreast(ir.MDValue):  # type: ignore[misc]
    """What tells LLVM to do 16 turns of a loop at a time, in four vectors: metadata that has to name itself first.

    It also lets LLVM add up in another order; from turn to turn of such a loop nothing is added up.
    """

    def __init__(self, module: Any) -> None:
        four = ir.Constant(ir.IntType(32), 4)
        hints = [module.add_metadata([f"llvm.loop.{hint}", four]) for hint in ("vectorize.width", "interleave.count")]
        super().__init__(module, hints, name=str(len(module.metadata)))

    def descr(self, buf: list[str]) -> None:
        """Written as `MDValue` does it, but for the node's own name."""
        hints = ", ".join(hint.get_reference() for hint in self.operands)
        buf += (f"distinct !{{ {self.get_reference()}, {hints} }}", "\n")


def lowered(text: str, **arguments: Any) -> tuple[Any, Callable[..., Any]]:
    """What a numba intrinsic returns: that it takes these arguments (name -> numba type), and how it is written out.

    `text`: statements on these names, with no index outside its array and no division by a whole number. LoweringError
    on anything else, when the intrinsic is compiled.

    >>> import numpy as np
    >>> from numba import njit
    >>> from numba.extending import intrinsic
    >>> @intrinsic
    ... def halve(typing_context, numbers, count):
    ...     return lowered("for i in range(count):\\n    numbers[i] = numbers[i] / 2.0", numbers=numbers, count=count)
    >>> @njit("void(float64[::1], int64)")
    ... def halved(numbers, count):
    ...     halve(numbers, count)
    >>> numbers = np.array([3.0, 5.0, 7.0])
    >>> halved(numbers, 2)
    >>> numbers.tolist()
    [1.5, 2.5, 7.0]
    """

    def codegen(context: Any, builder: Any, signature: Any, values: Sequence[Any]) -> Any:
        names: dict[str, Any] = {}
        for (name, kind), value in zip(arguments.items(), values, strict=True):
            if isinstance(kind, types.Array):
                fields = context.make_array(kind)(context, builder, value)
                value = Array(fields.data, [builder.extract_value(fields.shape, i) for i in range(kind.ndim)])
            names[name] = value
        try:
            Lowering(builder, names).block(ast.parse(text).body)
        except Exception as error:
            # what numba raises of its own, so that the guard is replayed in Python
            raise LoweringError(f"{type(error).__name__}: {error}") from error
        return context.get_dummy_value()

    return types.void(*arguments.values()), codegen


class Lowering:
    """Writes statements where a builder stands."""

    def __init__(self, builder: Any, names: dict[str, Any]) -> None:
        self.builder = builder
        self.names = names

    def block(self, statements: Sequence[ast.stmt]) -> None:
        """Assignments, loops over a range, and what is done on a condition."""
        for statement in statements:
            match statement:
                case ast.Assign(targets=[ast.Name(id=name)], value=value):
                    self.assign(name, self.value(value))
                case ast.Assign(targets=[ast.Subscript() as place], value=value):
                    self.builder.store(self.value(value), self.pointer(place))
                case ast.For(target=ast.Name(id=name), iter=ast.Call(func=ast.Name(id=kind), args=bounds), body=body):
                    self.loop(name, kind, bounds, body)
                case ast.If(test=test, body=body, orelse=[]):
                    with self.builder.if_then(self.value(test)):
                        self.block(body)
                case _:
                    raise NotImplementedError(ast.unparse(statement))

    def assign(self, name: str, value: Any) -> None:
        """Inside a loop, a name of outside keeps its place; any other is a new value."""
        found = self.names.get(name)
        if isinstance(found, Kept):
            self.builder.store(value, found.place)
        else:
            self.names[name] = value

    def loop(self, name: str, kind: str, bounds: Sequence[ast.expr], body: Sequence[ast.stmt]) -> None:
        """`for name in range(...)`, or in `abreast(...)`. What only the body assigns is not known behind it."""
        given = [self.value(bound) for bound in bounds]
        zero, one = ir.Constant(WHOLE, 0), ir.Constant(WHOLE, 1)
        start, stop, step = {1: (zero, *given, one), 2: (*given, one), 3: given}[len(given)]
        outside = dict(self.names)
        assigned = {n.id for s in body for n in ast.walk(s) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        for changed in sorted(assigned & outside.keys()):
            if not isinstance(outside[changed], Kept):
                outside[changed] = self.kept(outside[changed])
        self.names = dict(outside)
        with cgutils.for_range_slice(self.builder, start, stop, step, inc=step.constant > 0) as (index, _):
            self.names[name] = index
            self.block(body)
            last = self.builder.block
        if kind == "abreast":
            last.terminator.set_metadata("llvm.loop", Abreast(self.builder.module))
        self.names = outside

    def kept(self, value: Any) -> Kept:
        """A place that begins with this value."""
        with self.builder.goto_entry_block():
            place = self.builder.alloca(value.type)
        self.builder.store(value, place)
        return Kept(place)

    def pointer(self, node: ast.Subscript) -> Any:
        """Where `array[i, j]` lies."""
        match node:
            case ast.Subscript(value=ast.Name(id=name), slice=ast.Tuple(elts=indices)):
                pass
            case ast.Subscript(value=ast.Name(id=name), slice=index):
                indices = [index]
            case _:
                raise NotImplementedError(ast.unparse(node))
        array = self.names[name]
        at, *others = map(self.value, indices)
        for length, index in zip(array.lengths[1:], others, strict=True):
            at = self.builder.add(self.builder.mul(at, length), index)
        return self.builder.gep(array.first, [at], inbounds=True)

    def value(self, node: ast.expr) -> Any:
        """The value of an expression: float64, int64 or a bit."""
        builder = self.builder
        match node:
            case ast.Name(id="inf" | "nan" as name):
                return ir.Constant(REAL, math.inf if name == "inf" else math.nan)
            case ast.Name(id=name):
                found = self.names[name]
                return builder.load(found.place) if isinstance(found, Kept) else found
            case ast.Constant(value=bool() as known):
                return ir.Constant(BIT, known)
            case ast.Constant(value=int() as known):
                return ir.Constant(WHOLE, known)
            case ast.Constant(value=float() as known):
                return ir.Constant(REAL, known)
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as known)):
                return self.value(ast.Constant(-known))
            case ast.UnaryOp(op=ast.USub(), operand=ast.Name(id="inf")):
                return ir.Constant(REAL, -math.inf)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return builder.fneg(self.value(operand))
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return builder.not_(self.value(operand))
            case ast.BinOp(left=left, op=ast.BitAnd(), right=right):
                return builder.and_(self.value(left), self.value(right))
            case ast.BinOp(left=left, op=ast.BitOr(), right=right):
                return builder.or_(self.value(left), self.value(right))
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
                one, other = self.value(left), self.value(right)
                return getattr(builder, _BINARY[type(op)][one.type != REAL])(one, other)
            case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in _COMPARED:
                return self.compared(_COMPARED[type(op)], self.value(left), self.value(right))
            case ast.IfExp(test=test, body=yes, orelse=no):
                return builder.select(self.value(test), self.value(yes), self.value(no))
            case ast.Subscript():
                return builder.load(self.pointer(node))
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name), args=arguments, keywords=[]):
                return self.called(name, [self.value(argument) for argument in arguments])
        raise NotImplementedError(ast.unparse(node))

    def compared(self, symbol: str, one: Any, other: Any) -> Any:
        """A bit. As in Python, nan is unequal to everything."""
        if one.type != REAL:
            return self.builder.icmp_signed(symbol, one, other)
        compare = self.builder.fcmp_unordered if symbol == "!=" else self.builder.fcmp_ordered
        return compare(symbol, one, other)

    def called(self, name: str, arguments: Sequence[Any]) -> Any:
        """A function of one of the kernel's own, by its name."""
        builder, one = self.builder, arguments[0]
        match name:
            case "select":
                return builder.select(*arguments)
            case "min" | "max":
                return builder.select(self.compared("<" if name == "min" else ">", *arguments[::-1]), *arguments[::-1])
            case "opaque":
                # an instruction that LLVM cannot see through
                frozen = ir.Instruction(builder.block, one.type, "freeze", [one])
                builder._insert(frozen)
                return frozen
            case "int" if one.type == BIT:
                return builder.zext(one, WHOLE)
            case "int":
                return builder.fptosi(one, WHOLE) if one.type == REAL else one
            case "int8":
                return builder.fptosi(one, BYTE)
            case "float":
                return builder.sitofp(one, REAL) if one.type == WHOLE else one
            # Of positive normal numbers. There are no lanes for int64 -> float64: a small whole number goes through the
            # last bits of 2**52, where a float's last bit counts 1.
            case "fraction_of":
                kept = builder.and_(builder.bitcast(one, WHOLE), ir.Constant(WHOLE, 0x000FFFFFFFFFFFFF))
                return builder.bitcast(builder.or_(kept, ir.Constant(WHOLE, 0x3FE0000000000000)), REAL)
            case "exponent_of":
                high = builder.lshr(builder.bitcast(one, WHOLE), ir.Constant(WHOLE, 52))
                whole = builder.bitcast(builder.or_(high, ir.Constant(WHOLE, 0x4330000000000000)), REAL)
                return builder.fsub(whole, ir.Constant(REAL, 4503599627371518.0))
            case "two_to":
                moved = builder.bitcast(builder.fadd(one, ir.Constant(REAL, 4503599627371519.0)), WHOLE)
                return builder.bitcast(builder.shl(moved, ir.Constant(WHOLE, 52)), REAL)
            case _ if name in _ROUNDED:
                return builder.call(builder.module.declare_intrinsic(f"llvm.{_ROUNDED[name]}", [REAL]), [one])
        raise NotImplementedError(name)
