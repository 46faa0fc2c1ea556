"""YAML text -> a tree of nodes that know where they stand.  Pure.

Only the event stream of PyYAML's C parser is used: its composer and loader recurse, guess types and merge keys.  Here scalars
stay text with their style, and anchors, aliases, tags, merge keys, duplicate keys and too much of anything are refused
where they stand (attack P16).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import yaml

from broker.config import Limits
from broker.policy.tree import Problem

if not yaml.__with_libyaml__:  # pragma: no cover - the Python parser is 18 times slower and recurses
    raise ImportError("PyYAML was built without libyaml; reading policies needs its C parser")


@dataclass(frozen=True, slots=True)
class Scalar:
    """A leaf as it was written: its text, and whether it stood without quotes."""

    text: str
    plain: bool
    line: int
    column: int


@dataclass(frozen=True, slots=True)
class Listing:
    """A YAML sequence."""

    items: tuple[Node, ...]
    line: int
    column: int


@dataclass(frozen=True, slots=True)
class Table:
    """A YAML mapping; `keys` holds where each key stands."""

    entries: Mapping[str, Node]
    keys: Mapping[str, Scalar]
    line: int
    column: int


Node = Scalar | Listing | Table

MERGE_KEY: Final = "<<"


class _Refused(Exception):
    """Reading ends here: what follows could not be told apart from nonsense."""

    def __init__(self, mark: Any, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.mark = mark
        self.hint = hint


@dataclass(slots=True)
class _Open:
    """A collection whose end has not been read yet."""

    mark: Any
    is_table: bool
    items: list[Node] = field(default_factory=list)
    entries: dict[str, Node] = field(default_factory=dict)
    keys: dict[str, Scalar] = field(default_factory=dict)
    key: Scalar | None = None

    def close(self) -> Node:
        line, column = _place(self.mark)
        return Table(self.entries, self.keys, line, column) if self.is_table else Listing(tuple(self.items), line, column)


def read(raw: bytes, file: str, limits: Limits) -> tuple[Node | None, tuple[Problem, ...]]:
    """The root node of one YAML document, or None and what is wrong with it.  `raw` is the file's whole content."""
    if len(raw) > limits.policy_file_bytes_max:
        return None, (Problem(file, 1, 1, f"the file is larger than {limits.policy_file_bytes_max} bytes", "split it"),)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        column = error.start - (raw.rfind(b"\n", 0, error.start) + 1) + 1
        return None, (Problem(file, line, column, "this is not UTF-8", "save the file as UTF-8"),)
    if text.startswith("\ufeff"):
        return None, (Problem(file, 1, 1, "the file starts with a byte order mark", "save it as UTF-8 without one"),)
    try:
        root = _compose(yaml.parse(text, Loader=yaml.CBaseLoader), limits)
    except _Refused as refused:
        line, column = _place(refused.mark)
        return None, (Problem(file, line, column, str(refused), refused.hint),)
    except yaml.MarkedYAMLError as error:
        line, column = _place(error.problem_mark or error.context_mark)
        return None, (Problem(file, line, column, f"this is not YAML: {error.problem or error.context or 'unreadable'}"),)
    except yaml.YAMLError as error:
        line, column = _position(text, getattr(error, "position", 0))
        return None, (Problem(file, line, column, "the file holds a character that YAML does not allow"),)
    if root is None:
        return None, (Problem(file, 1, 1, "the file is empty", "an empty policy file says nothing; remove it or fill it"),)
    return root, ()


def place(root: Node, path: Sequence[str | int], *, key: bool = False) -> tuple[int, int]:
    """Line and column (1-based) of what a path leads to, or of the last step that exists.

    With `key`, of the key that names it.
    """
    node = root
    line, column = node.line, node.column
    for step in path:
        if isinstance(node, Table) and isinstance(step, str) and step in node.entries:
            named, node = node.keys[step], node.entries[step]
            line, column = (named.line, named.column) if key else (node.line, node.column)
        elif isinstance(node, Listing) and isinstance(step, int) and step < len(node.items):
            node = node.items[step]
            line, column = node.line, node.column
        elif isinstance(node, Table) and isinstance(step, str):
            break
        else:
            continue  # a step that only the schema knows (a branch of a choice)
    return line, column


def plain(node: Node) -> Any:
    """The same tree as dicts and lists, its leaves still `Scalar`s: what the schema reads types from."""
    if isinstance(node, Table):
        return {name: plain(value) for name, value in node.entries.items()}
    if isinstance(node, Listing):
        return [plain(item) for item in node.items]
    return node


def _compose(events: Iterator[Any], limits: Limits) -> Node | None:
    """The event stream, folded without recursion, so that depth costs nothing but a counter."""
    root: Node | None = None
    stack: list[_Open] = []
    nodes = documents = 0
    for event in events:
        if isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            _refuse_document(event, documents)
        if isinstance(event, yaml.NodeEvent):
            nodes += 1
            if nodes > limits.policy_nodes_max:
                raise _Refused(event.start_mark, f"the file holds more than {limits.policy_nodes_max} values", "split it")
            _refuse_references(event)
        if isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
            _refuse_collection(event, stack, limits)
            stack.append(_Open(event.start_mark, isinstance(event, yaml.MappingStartEvent)))
            continue
        if isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            node: Node = stack.pop().close()
        elif isinstance(event, yaml.ScalarEvent):
            node = Scalar(event.value, not event.style, *_place(event.start_mark))
        else:
            continue
        if stack:
            _put(stack[-1], node, event)
        else:
            root = node
    return None if isinstance(root, Scalar) and root.plain and not root.text else root


def _put(holder: _Open, node: Node, event: Any) -> None:
    if not holder.is_table:
        holder.items.append(node)
    elif holder.key is None:
        assert isinstance(node, Scalar)
        if node.text == MERGE_KEY and node.plain:
            raise _Refused(event.start_mark, "merge keys are not read here", "write the fields out")
        if node.text in holder.entries:
            raise _Refused(event.start_mark, f"`{_shown(node.text)}` stands here a second time", "keep one of them")
        holder.key = node
    else:
        holder.entries[holder.key.text] = node
        holder.keys[holder.key.text] = holder.key
        holder.key = None


def _refuse_document(event: Any, documents: int) -> None:
    if documents > 1:
        raise _Refused(event.start_mark, "a second document starts here", "one file holds one document")
    if event.version or event.tags:
        raise _Refused(event.start_mark, "YAML directives have no meaning here", "remove the line that starts with %")


def _refuse_collection(event: Any, stack: list[_Open], limits: Limits) -> None:
    if len(stack) >= limits.policy_depth_max:
        raise _Refused(event.start_mark, f"this is nested deeper than {limits.policy_depth_max} levels")
    if stack and stack[-1].is_table and stack[-1].key is None:
        raise _Refused(event.start_mark, "a key must be plain text")


def _refuse_references(event: Any) -> None:
    if isinstance(event, yaml.AliasEvent):
        raise _Refused(event.start_mark, f"`*{_shown(event.anchor)}`: aliases are not read here", "write it out, or quote it")
    if event.anchor is not None:
        raise _Refused(event.start_mark, f"`&{_shown(event.anchor)}`: anchors are not read here", "remove or quote it")
    if event.tag is not None:
        raise _Refused(event.start_mark, f"`{_shown(event.tag)}`: tags are not read here", "remove it, or quote the value")


def _shown(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "…"


def _place(mark: Any) -> tuple[int, int]:
    return (mark.line + 1, mark.column + 1) if mark is not None else (1, 1)


def _position(text: str, offset: int) -> tuple[int, int]:
    return text.count("\n", 0, offset) + 1, offset - (text.rfind("\n", 0, offset) + 1) + 1
