"""What a checked CEL expression says: which claims it reads, and what in it may not load.  Pure.

CEL's own limits (depth 32, an iteration budget, RE2) bound one evaluation; the rules here bound what it may ask for:
known functions, `all`, `exists` and `exists_one` without nesting (a chain of `map` doubles a text with every link), patterns
that are literal and anchored at both ends (attack P01), claims by name.  Only condition.py calls this.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Final

from google.protobuf import any_pb2, descriptor_pb2, descriptor_pool, message_factory

PRESENT: Final = "@present."  # what `present("x")` becomes: a variable that is always bound
FUNCTIONS: Final = frozenset(
    {
        *("_&&_", "_||_", "!_", "_==_", "_!=_", "_<_", "_<=_", "_>_", "_>=_", "@in", "_?_:_", "_[_]"),
        *("_+_", "_-_", "-_", "@not_strictly_false", "size", "startsWith", "endsWith", "contains", "matches", "present"),
    }
)
COMPREHENSIONS_DEEP_MAX: Final = 1

# The part of cel/expr/checked.proto and syntax.proto that is read here: message -> (field, number, type); * repeated.
_MESSAGES: Final[Mapping[str, tuple[tuple[str, int, str], ...]]] = {
    "Expr": (
        ("id", 2, "int64"),
        ("const_expr", 3, "Constant"),
        ("ident_expr", 4, "Ident"),
        ("select_expr", 5, "Select"),
        ("call_expr", 6, "Call"),
        ("list_expr", 7, "List"),
        ("struct_expr", 8, "Struct"),
        ("comprehension_expr", 9, "Comprehension"),
    ),
    "Constant": (("string_value", 6, "string"),),
    "Ident": (("name", 1, "string"),),
    "Select": (("operand", 1, "Expr"), ("field", 2, "string"), ("test_only", 3, "bool")),
    "Call": (("target", 1, "Expr"), ("function", 2, "string"), ("args", 3, "Expr*")),
    "List": (("elements", 1, "Expr*"),),
    "Entry": (("map_key", 3, "Expr"), ("value", 4, "Expr")),
    "Struct": (("message_name", 1, "string"), ("entries", 2, "Entry*")),
    "Comprehension": (
        ("iter_range", 2, "Expr"),
        ("accu_init", 4, "Expr"),
        ("loop_condition", 5, "Expr"),
        ("loop_step", 6, "Expr"),
        ("result", 7, "Expr"),
    ),
    "Reference": (("name", 1, "string"), ("overload_id", 3, "string*")),
    "ReferenceEntry": (("key", 1, "int64"), ("value", 2, "Reference")),
    "PositionEntry": (("key", 1, "int64"), ("value", 2, "int32")),
    "SourceInfo": (("positions", 4, "PositionEntry*"),),
    "CheckedExpr": (("reference_map", 2, "ReferenceEntry*"), ("expr", 4, "Expr"), ("source_info", 5, "SourceInfo")),
}


def _checked_expression() -> Callable[[], Any]:
    kinds = descriptor_pb2.FieldDescriptorProto
    scalars = {"int64": kinds.TYPE_INT64, "int32": kinds.TYPE_INT32, "string": kinds.TYPE_STRING, "bool": kinds.TYPE_BOOL}
    file = descriptor_pb2.FileDescriptorProto(name="condition.proto", package="condition", syntax="proto2")
    for message, members in _MESSAGES.items():
        described = file.message_type.add(name=message)
        for name, number, kind in members:
            label = kinds.LABEL_REPEATED if kind.endswith("*") else kinds.LABEL_OPTIONAL
            member = described.field.add(name=name, number=number, label=label)
            if (scalar := scalars.get(kind.rstrip("*"))) is not None:
                member.type = scalar
            else:
                member.type = kinds.TYPE_MESSAGE
                member.type_name = f".condition.{kind.rstrip('*')}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("condition.CheckedExpr"))


_CheckedExpr: Final = _checked_expression()


@dataclass(frozen=True, slots=True)
class Fault:
    """What may not load: the offset (code points) into the text, what is wrong, what would be right."""

    offset: int
    message: str
    hint: str = ""


@dataclass(slots=True)
class Reading:
    """What an expression reads: claims in order of mention, those asked for by `present`, and whether it looks at the request."""

    claims: dict[str, None] = field(default_factory=dict)
    tested: set[str] = field(default_factory=set)
    typed: set[str] = field(default_factory=set)
    request: bool = False
    patterns: list[tuple[int, str]] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)


def read(serialized: bytes, known: Callable[[str], bool] | None, names: tuple[str, ...]) -> tuple[Reading, bytes]:
    """What a serialized checked expression says, and the same expression with `present("x")` turned into a variable.

    `known` tells whether the issuer has a claim of a name; None where all names may be asked for.
    Raises google.protobuf's DecodeError where the expression is nested too deeply to be read.
    """
    wrapper = any_pb2.Any()
    wrapper.ParseFromString(serialized)
    checked = _CheckedExpr()
    checked.ParseFromString(wrapper.value)
    walk = _Walk(checked, known, names)
    walk.visit(checked.expr, 0)
    wrapper.value = checked.SerializeToString()
    return walk.reading, wrapper.SerializeToString()


class _Walk:
    """One pass over an expression."""

    def __init__(self, checked: Any, known: Callable[[str], bool] | None, names: tuple[str, ...]) -> None:
        self.reading = Reading()
        self.references = {entry.key: entry.value for entry in checked.reference_map}
        self.positions = {entry.key: entry.value for entry in checked.source_info.positions}
        self.known = known
        self.names = names

    def visit(self, expr: Any, deep: int) -> None:
        reference = self.references.get(expr.id)
        if reference is not None and reference.name.startswith("claims.") and not expr.HasField("call_expr"):
            self._mention(expr, reference.name.removeprefix("claims."), typed=True)
            return
        if (name := self._named_claim(expr)) is not None:
            self._mention(expr, name)
            return
        if reference is not None and reference.name.startswith("request."):
            self.reading.request = True
        if expr.HasField("ident_expr") and expr.ident_expr.name == "claims":
            self._fault(expr, "claims can only be read by name", 'write claims.NAME or claims["NAME"]')
        if expr.HasField("call_expr"):
            self._call(expr)
        if expr.HasField("comprehension_expr"):
            if not expr.comprehension_expr.accu_init.HasField("const_expr"):
                self._fault(expr, "`map` and `filter` are not available in conditions", "use all, exists or exists_one")
            deep += 1
            if deep > COMPREHENSIONS_DEEP_MAX:
                self._fault(expr, "a loop inside a loop is not available in conditions")
        for child in _children(expr):
            self.visit(child, deep)

    def _named_claim(self, expr: Any) -> str | None:
        """The name in `claims.NAME` and `claims["NAME"]` where `claims` is a map."""
        if expr.HasField("select_expr") and _is_claims(expr.select_expr.operand):
            return str(expr.select_expr.field)
        if expr.HasField("call_expr") and expr.call_expr.function == "_[_]" and _is_claims(expr.call_expr.args[0]):
            return _text(expr.call_expr.args[1])
        return None

    def _mention(self, expr: Any, name: str, *, typed: bool = False) -> None:
        if self.known is not None and not self.known(name):
            close = get_close_matches(name, self.names, 1)
            self._fault(expr, f"this issuer has no claim `{name}`", f"did you mean `{close[0]}`?" if close else "")
        self.reading.claims.setdefault(name)
        if typed:
            self.reading.typed.add(name)

    def _call(self, expr: Any) -> None:
        call = expr.call_expr
        if call.function not in FUNCTIONS:
            self._fault(expr, f"`{call.function}` is not available in conditions")
        elif call.function == "present":
            self._present(expr)
        elif call.function == "matches":
            pattern = _text(call.args[-1])
            if pattern is None:
                self._fault(expr, "the pattern of `matches` must be a literal text")
            elif fault := unanchored(pattern):
                self._fault(expr, fault, "anchor it: ^(…)$")
            else:
                self.reading.patterns.append((self.positions.get(call.args[-1].id, 0), pattern))

    def _present(self, expr: Any) -> None:
        name = _text(expr.call_expr.args[0])
        if name is None:
            self._fault(expr, "`present` takes the name of a claim as a literal text", 'like present("environment")')
            return
        if self.known is not None and not self.known(name):
            close = get_close_matches(name, self.names, 1)
            self._fault(expr, f"this issuer has no claim `{name}`", f"did you mean `{close[0]}`?" if close else "")
        self.reading.claims.setdefault(name)
        self.reading.tested.add(name)
        expr.ClearField("call_expr")
        expr.ident_expr.name = PRESENT + name
        reference = self.references[expr.id]
        reference.name = PRESENT + name
        del reference.overload_id[:]

    def _fault(self, expr: Any, message: str, hint: str = "") -> None:
        self.reading.faults.append(Fault(self.positions.get(expr.id, 0), message, hint))


def unanchored(pattern: str) -> str:
    """Why a pattern could match a part of a text only; empty if it is anchored at both ends (RE2 syntax)."""
    if re.search(r"\(\?[a-zA-Z]*m", pattern):
        return "a pattern with the flag m matches single lines of a text"
    if not pattern.startswith("^") or pattern[1:2] in ("*", "+", "?", "{"):
        return "the pattern must start with ^"
    escaped = in_class = False
    depth = first = skip_to = 0
    for index, character in enumerate(pattern):
        if index < skip_to:
            continue
        if escaped:
            escaped = False
        elif in_class and pattern.startswith("[:", index) and ":]" in pattern[index:]:
            skip_to = pattern.index(":]", index) + 2
        elif character == "\\":
            escaped = True
            if pattern.startswith("\\Q", index):
                return "a pattern must not quote with \\Q"
        elif in_class:
            in_class = character != "]" or index == first  # a bracket that comes first is one of the members
        elif character == "[":
            in_class = True
            first = index + (2 if pattern.startswith("^", index + 1) else 1)
        elif character in "()":
            depth += 1 if character == "(" else -1
        elif character == "|" and depth == 0:
            return "alternatives of a pattern must stand in a group, else an anchor holds for one of them only"
    ended = pattern.endswith("$") and (len(pattern) - len(pattern[:-1].rstrip("\\"))) % 2 == 1
    return "" if ended and depth == 0 and not in_class else "the pattern must end with $"


def _is_claims(expr: Any) -> bool:
    return bool(expr.HasField("ident_expr") and expr.ident_expr.name == "claims")


def _text(expr: Any) -> str | None:
    if expr.HasField("const_expr") and expr.const_expr.HasField("string_value"):
        return str(expr.const_expr.string_value)
    return None


def _children(expr: Any) -> Iterator[Any]:
    if expr.HasField("select_expr"):
        yield expr.select_expr.operand
    if expr.HasField("call_expr"):
        if expr.call_expr.HasField("target"):
            yield expr.call_expr.target
        yield from expr.call_expr.args
    if expr.HasField("list_expr"):
        yield from expr.list_expr.elements
    for entry in expr.struct_expr.entries if expr.HasField("struct_expr") else ():
        yield entry.map_key
        yield entry.value
    if expr.HasField("comprehension_expr"):
        loop = expr.comprehension_expr
        yield from (loop.iter_range, loop.accu_init, loop.loop_condition, loop.loop_step, loop.result)
