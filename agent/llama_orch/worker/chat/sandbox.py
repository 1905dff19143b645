"""The sandbox for chat templates, with bounds to the time and the memory that one rendering takes.

A template comes with a model, from outside. jinja2's sandbox keeps it from Python, but not from asking for a text of
3 GB in twenty characters, so whatever makes texts and lists grow is looked at before it is done, and what was made is
added up: together it bounds what can lie in memory at one time, whatever the template keeps of it.
"""

from __future__ import annotations

import functools
import json
import re
import sys
import time
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, Mapping, ValuesView
from collections.abc import Set as AnySet
from contextlib import contextmanager
from contextvars import ContextVar
from types import BuiltinMethodType
from typing import Any

import jinja2
import jinja2.exceptions
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.runtime
import jinja2.sandbox
import jinja2.utils
import jinja2.visitor

# What one rendering may take. Texts and lists are added up in bytes of memory, also those that are gone already.
CPU_SECONDS = 5.0
MAX_BYTES = 128 * 1024 * 1024
# Characters of one text, the rendered one included, or items of one list. A body has at most a quarter of it.
MAX_TEXT = 4 * 1024 * 1024
MAX_ITEMS = 512 * 1024
_INTEGER_BITS = 64
_SMALL = 100
# For filters that are slow and that no template for chats needs.
_SHORT_TEXT = 64 * 1024
_TURN_BYTES = 64
_REFERENCE_BYTES = 8
_STEPS_BETWEEN_LOOKS = 4096
_WIDE = re.compile(r"[0-9]{4}|\*")
_NEVER = frozenset({"encode", "translate", "maketrans", "to_bytes", "from_bytes", "hex", "fromhex"})


class Exceeded(Exception):
    """The template takes more than it may, or wants what none may; says what."""


class _Allowance:
    def __init__(self, scale: int) -> None:
        self.until = time.thread_time() + CPU_SECONDS
        self.bytes_left = self.bytes = MAX_BYTES * scale
        self.text = MAX_TEXT * scale


_allowance: ContextVar[_Allowance] = ContextVar("allowance")


@contextmanager
def bounded(scale: int = 1) -> Iterator[None]:
    """Let what is compiled or rendered inside have one allowance of time and of `scale` times the memory."""
    token = _allowance.set(_Allowance(scale))
    try:
        yield
    finally:
        _allowance.reset(token)


def _still_in_time() -> None:
    if time.thread_time() > _allowance.get().until:
        raise Exceeded(f"it takes more than {CPU_SECONDS:g} seconds of computing")


def _use(size: int) -> None:
    allowance = _allowance.get()
    allowance.bytes_left -= size
    if allowance.bytes_left < 0:
        raise Exceeded(f"it makes more than {allowance.bytes // 2**20} MiB of texts and lists")


def _made(value: Any) -> Any:
    """The same value, added up."""
    if value is None or isinstance(value, (bool, float)):
        return value
    if isinstance(value, Iterator):
        return _counted(value)
    _use(sys.getsizeof(value))
    return value


def _counted(items: Iterable[Any], outputs: int = 0) -> Iterator[Any]:
    for item in items:
        _still_in_time()
        _use(_TURN_BYTES + _REFERENCE_BYTES * outputs)
        yield item


def _fits(size: int, most: int = 0) -> None:
    """Raise Exceeded where a text of that many characters, or a list of that many items, would be too long."""
    if size > (most or _allowance.get().text):
        raise Exceeded("a text or a list becomes too long")


def _weight(value: Any) -> tuple[int, int]:
    """About how many characters a value has when it is written out, and how deep it is. Raises Exceeded."""
    total, deepest, seen = 0, 0, 0
    left = [(value, 0)]
    while left:
        one, depth = left.pop()
        seen += 1
        if not seen % _STEPS_BETWEEN_LOOKS:
            _still_in_time()
        deepest = max(deepest, depth)
        if isinstance(one, jinja2.utils.Namespace):
            raise Exceeded("a namespace is no text")
        if isinstance(one, str):
            total += len(one) + 2
        elif isinstance(one, Mapping):
            total += 2
            left += [(part, depth + 1) for pair in one.items() for part in pair]
        elif isinstance(one, (list, tuple, AnySet, KeysView, ValuesView, ItemsView)):
            total += 2
            left += [(part, depth + 1) for part in one]
        else:
            total += 8
        _fits(total)
        _fits(seen + len(left), MAX_ITEMS)
    return total, deepest


def _written(value: Any) -> Any:
    """What a template writes out, once it is known not to become too long."""
    if not isinstance(value, str):
        _weight(value)
    return value


def _listed(items: Any) -> list[Any]:
    found: list[Any] = []
    for item in items:
        found.append(item)
        _fits(len(found), MAX_ITEMS)
    return found


def _concat(parts: Iterable[str]) -> str:
    total, kept = 0, []
    for part in parts:
        total += len(part)
        _fits(total)
        kept.append(part)
    return _made("".join(kept))


def _joined(texts: list[Any]) -> Any:
    _weight(texts)
    return _made("".join(map(str, texts)))


def _sliced(value: Any, start: Any, stop: Any, step: Any) -> Any:
    return _made(value[start:stop:step])


# --- what may grow: by the name of the filter or of the text's method


def _lines(text: str) -> int:
    return text.count("\n") + 1


def _check_width(text: Any, width: Any = 80, *_: Any) -> None:
    _fits(max(int(width), len(str(text))))


def _check_indent(text: Any, width: Any = 4, *_: Any) -> None:
    size = len(width) if isinstance(width, str) else int(width)
    _fits(len(str(text)) + _lines(str(text)) * size)


def _check_replace(text: Any, old: Any, new: Any, *_: Any) -> None:
    _fits(len(text) + (text.count(old) if old else len(text) + 1) * len(new))


def _check_tabs(text: str, size: Any = 8) -> None:
    _fits(len(text) + text.count("\t") * int(size))


def _check_pieces(text: str, between: Any = None, *_: Any) -> None:
    _fits(text.count(between) if between else len(text) // 2, MAX_ITEMS)


def _check_percent(form: Any, *given: Any, **named: Any) -> None:
    if _WIDE.search(str(form)):
        raise Exceeded("a text is formatted too wide")
    _fits(len(form) + (form.count("%") + 1) * (_SMALL + _weight([*given, named])[0]))


def _check_short(text: Any, *more: Any, **named: Any) -> None:
    _fits(_weight([text, *more, named])[0], _SHORT_TEXT)


def _check_few(_: Any, count: Any, *__: Any) -> None:
    _fits(int(count), MAX_ITEMS // 8)


def _check_precision(_: Any, precision: Any = 0, *__: Any) -> None:
    _fits(abs(int(precision)), _SMALL)


def _check_number(text: Any, *_: Any, **__: Any) -> None:
    if isinstance(text, str):
        _fits(len(text), 4096)


def _check_sum(_: Any, attribute: Any = None, start: Any = 0) -> None:
    if not isinstance(start, (int, float)):
        raise Exceeded("only numbers are added up")


def _check_written(value: Any, *more: Any, **named: Any) -> None:
    _weight([value, *more, named])


_METHODS: dict[str, Callable[..., None]] = {
    **dict.fromkeys(("center", "ljust", "rjust", "zfill"), _check_width),
    **dict.fromkeys(("split", "rsplit"), _check_pieces),
    "splitlines": lambda text, *_: _fits(_lines(text), MAX_ITEMS),
    "expandtabs": _check_tabs,
    "replace": _check_replace,
}
_FILTERS: dict[str, Callable[..., None]] = {
    "center": _check_width,
    "indent": _check_indent,
    "replace": _check_replace,
    "format": _check_percent,
    "round": _check_precision,
    "int": _check_number,
    "sum": _check_sum,
    **dict.fromkeys(("batch", "slice"), _check_few),
    **dict.fromkeys(("pprint", "striptags", "urlize", "wordwrap", "xmlattr"), _check_short),
    **dict.fromkeys(("string", "escape", "e", "forceescape", "urlencode"), _check_written),
}
# They read all of an iterable at once, and compare or join what is in it.
_READ_ALL = frozenset({"sort", "unique", "min", "max", "groupby", "join", "sum"})


def _checked(name: str, filter_: Callable[..., Any]) -> Callable[..., Any]:
    """A filter of jinja2's whose arguments are looked at first, and whose result is added up."""
    check = _FILTERS.get(name)
    first = 1 if hasattr(filter_, "jinja_pass_arg") else 0

    @functools.wraps(filter_)
    def checked(*given: Any, **named: Any) -> Any:
        _still_in_time()
        before, (value, *rest) = given[:first], given[first:]
        if isinstance(value, jinja2.Undefined):
            return filter_(*given, **named)
        if name == "list" or name in _READ_ALL:
            value = _listed(value)
        if name in _READ_ALL:
            size, _ = _weight(value)
            between = rest[0] if rest else named.get("d", "")
            _fits(size + len(value) * len(between) if isinstance(between, str) else size)
        if check is not None:
            check(value, *rest, **named)
        return _made(filter_(*before, value, *rest, **named))

    return checked


def to_json(value: Any, indent: Any = None, ensure_ascii: bool = False, **options: Any) -> str:
    """A value as JSON, as templates ask for it. Raises Exceeded where it becomes too long."""
    size, depth = _weight(value)
    step = len(indent) if isinstance(indent, str) else int(indent or 0)
    _fits(step, _SMALL)
    # Each of its values may stand on a line of its own.
    _fits(size + (size // 2) * step * depth if step else size)
    _weight(options)
    _fits(sum(len(str(one)) for one in options.get("separators") or ()), 16)
    return _made(json.dumps(value, indent=indent, ensure_ascii=ensure_ascii, **options))


class _Formatter(jinja2.sandbox.SandboxedFormatter):
    def format_field(self, value: Any, format_spec: str) -> Any:
        """One value in a text that is formatted."""
        if _WIDE.search(format_spec):
            raise Exceeded("a text is formatted too wide")
        _use(_weight(value)[0])
        return _made(super().format_field(value, format_spec))


class _GenerationTag(jinja2.ext.Extension):
    """Templates made for training mark the assistant's part with this tag; for us it means nothing."""

    tags = {"generation"}  # noqa: RUF012  jinja2's own interface

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _through(filter_: str, node: jinja2.nodes.Node, *arguments: Any) -> jinja2.nodes.Filter:
    made: Any = jinja2.nodes.Filter
    return made(node, filter_, list(arguments), [], None, None, lineno=node.lineno)


class _Instrumented(jinja2.visitor.NodeTransformer):
    """Puts our own functions where a template loops, where it joins or cuts texts, and where it writes long lists."""

    def visit_For(self, node: jinja2.nodes.For) -> jinja2.nodes.Node:  # noqa: N802  jinja2's own interface
        outputs = sum(len(output.nodes) for output in node.find_all(jinja2.nodes.Output))
        self.generic_visit(node)
        node.iter = _through("_counted", node.iter, jinja2.nodes.Const(outputs))
        return node

    def visit_Concat(self, node: jinja2.nodes.Concat) -> jinja2.nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _through("_joined", jinja2.nodes.List(node.nodes, lineno=node.lineno))

    def visit_Getitem(self, node: jinja2.nodes.Getitem) -> jinja2.nodes.Node:  # noqa: N802
        self.generic_visit(node)
        if not isinstance(node.arg, jinja2.nodes.Slice):
            return node
        parts = (node.arg.start, node.arg.stop, node.arg.step)
        return _through("_sliced", node.node, *(part or jinja2.nodes.Const(None) for part in parts))

    def visit_List(self, node: jinja2.nodes.List) -> jinja2.nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _through("_made", node) if len(node.items) > _SMALL else node

    def visit_Dict(self, node: jinja2.nodes.Dict) -> jinja2.nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _through("_made", node) if len(node.items) > _SMALL else node


class Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """jinja2's sandbox, which keeps a template from Python, with our bounds. To be used inside of `bounded`."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_GenerationTag, jinja2.ext.loopcontrols],
            finalize=_written,
        )
        self.concat = _concat  # pyright: ignore[reportAttributeAccessIssue]  asked for by what jinja2 compiles
        self.filters = {name: _checked(name, one) for name, one in self.filters.items()}
        ours = {"_counted": _counted, "_joined": _joined, "_sliced": _sliced, "_made": _made}
        self.filters |= {"tojson": to_json, **ours}
        del self.globals["lipsum"]

    def compiled(self, source: str) -> jinja2.Template:
        """The template of `source`. Raises jinja2.TemplateError."""
        with bounded():
            return self.from_string(_Instrumented().visit(self.parse(source)))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """What stands in for `str.format`; no text grows beyond its bounds by it."""
        if not isinstance(value, BuiltinMethodType) or value.__name__ not in ("format", "format_map"):
            return None
        text = value.__self__
        if not isinstance(text, str):
            return None
        by_map = value.__name__ == "format_map"

        def wrapper(*given: Any, **named: Any) -> str:
            if by_map:
                given, named = (), dict(given[0])
            return _made(_Formatter(self).vformat(str(text), given, named))

        return functools.update_wrapper(wrapper, value)

    def call(self, context: Any, obj: Any, /, *arguments: Any, **named: Any) -> Any:
        """Call what a template calls: a macro may call itself without end, and a loop may be called as well."""
        _still_in_time()
        _use(_TURN_BYTES)
        if isinstance(obj, jinja2.runtime.LoopContext):
            arguments = (_counted(arguments[0]), *arguments[1:])
        elif isinstance(obj, BuiltinMethodType):
            arguments = self._looked_at(obj, arguments, named)
        return _made(super().call(context, obj, *arguments, **named))

    def _looked_at(self, method: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, ...]:
        """The arguments of a method of Python's own types, where they ask for nothing too large."""
        if method.__name__ in _NEVER:
            raise jinja2.exceptions.SecurityError(f"{method.__name__!r} is not for templates")
        if not isinstance(method.__self__, str):
            return arguments
        if method.__name__ == "join" and arguments:
            parts = _listed(arguments[0])
            _fits(_weight(parts)[0] + len(parts) * len(method.__self__))
            return (parts, *arguments[1:])
        check = _METHODS.get(method.__name__)
        if check is not None:
            check(method.__self__, *arguments, *named.values())
        return arguments

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Compute what needs a limit, as a few characters may ask for a number that fills the memory."""
        if operator == "**":
            raise Exceeded("powers are not computed")
        if isinstance(left, int) and isinstance(right, int):
            if max(left.bit_length(), right.bit_length()) > _INTEGER_BITS:
                raise Exceeded("a number becomes too large")
        elif operator == "%":
            if isinstance(left, str):
                _check_percent(left, right)
        else:
            self._check_sizes(operator, left, right)
        return _made(super().call_binop(context, operator, left, right))

    @staticmethod
    def _check_sizes(operator: str, left: Any, right: Any) -> None:
        sizes = [len(one) if hasattr(one, "__len__") else one for one in (left, right)]
        if all(isinstance(size, int) for size in sizes):
            size = sizes[0] * sizes[1] if operator == "*" else sizes[0] + sizes[1]
            of_texts = isinstance(left, str) or isinstance(right, str)
            _fits(abs(size), 0 if of_texts else MAX_ITEMS)
