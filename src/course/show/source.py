"""The library's own code on the page, so that each listing exists once and is the code that runs."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import course
from course import UserError

BRANCH = "main"
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def source(
    *objects: Callable | type | ModuleType, only: tuple[str, ...] = (), docstring: bool = False
) -> None:
    """Show code of the library as highlighted listings, each under a link to the repository.

    Args:
        objects: functions, methods, classes or modules of ``course``.
        only: of a class, show only these methods (and the class line); ``# ...`` marks what is left out.
        docstring: show docstrings in full; by default only their first sentence, the page says the rest.
    """
    from IPython.display import display

    for shown in objects:
        text = listing(shown, only=only, docstring=docstring)
        display({"text/markdown": text, "text/plain": text.split("](")[0].lstrip("[")}, raw=True)


def listing(
    shown: Callable | type | ModuleType, *, only: tuple[str, ...] = (), docstring: bool = False
) -> str:
    """What ``source`` displays, as Markdown.

    Raises:
        UserError: the object has no source code inside the package, or a class has no method named in
            ``only``.
    """
    try:
        shown = inspect.unwrap(shown)  # not the decorator around it
        lines, start = inspect.getsourcelines(shown)
        file = Path(inspect.getsourcefile(shown) or "").resolve()
        place = file.relative_to(Path(course.__file__).resolve().parent)
    except (TypeError, OSError, ValueError):
        raise UserError(f"cannot show {shown!r}: it is not code of the course package") from None

    code = textwrap.dedent("".join(lines))
    kept = _select(code, only, getattr(shown, "__name__", "")) if only else code.rstrip()
    kept = kept if docstring else _shorten(kept)
    start = max(start, 1)  # a whole module is said to start in line 0
    last = start + len(lines) - 1
    link = f"{course.address()}/blob/{BRANCH}/src/course/{place.as_posix()}#L{start}-L{last}"
    # A fence must be longer than any run of backticks inside.
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", kept)), default=0))
    return f"[course/{place.as_posix()}, line {start}]({link})\n\n{fence}python\n{kept}\n{fence}"


def _select(code: str, only: tuple[str, ...], name: str) -> str:
    """Of a class: its head, its docstring and the chosen methods, with a mark where something is left out."""
    node = ast.parse(code).body[0]
    if not isinstance(node, ast.ClassDef):
        raise UserError(f"only={only!r} chooses methods of a class; {name} is none")
    methods = {item.name: item for item in node.body if isinstance(item, FUNCTIONS)}
    if missing := [wanted for wanted in only if wanted not in methods]:
        raise UserError(f"class {name} has no method {missing[0]!r}; it has: {', '.join(methods)}")

    has_docstring = ast.get_docstring(node) is not None
    spans = [(0, node.body[0].end_lineno if has_docstring else _first(node.body[0]))]
    spans += sorted((_first(methods[wanted]), methods[wanted].end_lineno) for wanted in only)
    lines, kept, end = code.splitlines(), [], 0
    mark = " " * node.body[0].col_offset + "# ..."
    for first, last in [*spans, (len(lines), len(lines))]:
        if any(line.strip() for line in lines[end:first]):
            kept += ["", mark]
        if end < first < len(lines):
            kept.append("")
        kept += lines[first:last]
        end = last
    return "\n".join(kept)


def _first(node: ast.stmt) -> int:
    """Index of a statement's first line, decorators included."""
    return min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", []))]) - 1


def _shorten(code: str) -> str:
    """Cut each docstring down to its first sentence or paragraph, whichever is shorter."""
    lines: list[str | None] = list(code.splitlines())
    for node in ast.walk(ast.parse(code)):
        if not isinstance(node, (ast.Module, ast.ClassDef, *FUNCTIONS)):
            continue
        text, at = ast.get_docstring(node), node.body[0]
        if text is not None and at.end_lineno is not None:
            sentence = re.split(r"(?<=[.!?])\s+(?=[A-Z`*])", " ".join(text.split("\n\n")[0].split()))[0]
            indent = " " * at.col_offset
            wrapped = textwrap.fill(f'"""{sentence}"""', 100, initial_indent=indent, subsequent_indent=indent)
            lines[at.lineno - 1 : at.end_lineno] = [wrapped] + [None] * (at.end_lineno - at.lineno)
    return "\n".join(line for line in lines if line is not None)
