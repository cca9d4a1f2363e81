"""The library's own code on the page, so that each listing exists once and is the code that runs."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable
from pathlib import Path

import course
from course import UserError

BRANCH = "main"


def source(*objects: Callable | type, only: tuple[str, ...] = (), docstring: bool = False) -> None:
    """Show the code of functions and classes as highlighted listings, each under a link to its place in the repository.

    Args:
        objects: functions, methods or classes of ``course``.
        only: of a class, show only these methods (and the class line); ``# ...`` marks what is left out.
        docstring: show docstrings in full; by default only their first sentence, since the page says the rest.
    """
    from IPython.display import display

    for shown in objects:
        text = listing(shown, only=only, docstring=docstring)
        display({"text/markdown": text, "text/plain": text.split("](")[0].lstrip("[")}, raw=True)


def listing(shown: Callable | type, *, only: tuple[str, ...] = (), docstring: bool = False) -> str:
    """What ``source`` displays, as Markdown.

    Raises:
        UserError: the object has no source code inside the package, or a class has no method named in ``only``.
    """
    try:
        lines, start = inspect.getsourcelines(inspect.unwrap(shown))
        file = Path(inspect.getsourcefile(shown) or "").resolve()
        place = file.relative_to(Path(course.__file__).resolve().parent)
    except (TypeError, OSError, ValueError):
        raise UserError(f"cannot show {shown!r}: it is not a function or class of the course package") from None

    start = max(start, 1)  # a whole module counts from 0
    code = textwrap.dedent("".join(lines))
    kept = _lines(code, only, docstring, getattr(shown, "__name__", ""))
    first, last = start, start + len(lines) - 1
    link = f"{course.address()}/blob/{BRANCH}/src/course/{place.as_posix()}#L{first}-L{last}"
    # A fence must be longer than any run of backticks inside.
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", kept)), default=0))
    return f"[course/{place.as_posix()}, line {first}]({link})\n\n{fence}python\n{kept}\n{fence}"


def _lines(code: str, only: tuple[str, ...], docstring: bool, name: str) -> str:
    """The code with docstrings shortened and, of a class, only the methods asked for."""
    lines: list[str | None] = list(code.splitlines())
    tree = ast.parse(code)
    if only:
        _select(lines, tree.body[0], only, name)
    if not docstring:
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                _shorten(lines, node)
    text = "\n".join(line for line in lines if line is not None)
    return re.sub(r"\n{4,}", "\n\n\n", text).strip("\n")


def _shorten(lines: list[str | None], node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> None:
    """Cut a docstring down to its first sentence or paragraph, whichever is shorter."""
    text = ast.get_docstring(node)
    if text is None:
        return
    at = node.body[0]
    if lines[at.lineno - 1] is None:
        return  # inside a method that is not shown
    first = " ".join(text.split("\n\n")[0].split())
    sentence = re.split(r"(?<=[.!?])\s", first)[0]
    wrapped = textwrap.wrap(f'"""{sentence}"""', 110 - at.col_offset, break_long_words=False)
    indented = [" " * at.col_offset + line for line in wrapped]
    lines[at.lineno - 1 : at.end_lineno] = ["\n".join(indented)] + [None] * (at.end_lineno - at.lineno)


def _select(lines: list[str | None], node: ast.stmt, only: tuple[str, ...], name: str) -> None:
    """Blank out all of a class but its head, its docstring and the chosen methods."""
    if not isinstance(node, ast.ClassDef):
        raise UserError(f"only={only!r} chooses methods of a class; {name} is none")
    methods = {item.name: item for item in node.body if isinstance(item, (ast.FunctionDef, ast.AsyncFunctionDef))}
    if missing := [wanted for wanted in only if wanted not in methods]:
        raise UserError(f"class {name} has no method {missing[0]!r}; it has: {', '.join(methods)}")

    def span(item: ast.stmt) -> range:
        first = min([item.lineno, *(mark.lineno for mark in getattr(item, "decorator_list", []))])
        return range(first - 1, item.end_lineno or first)

    keep = set(range(span(node.body[0]).start))  # decorators and the class line
    if ast.get_docstring(node) is not None:
        keep |= set(span(node.body[0]))
    for wanted in only:
        keep |= set(span(methods[wanted]))
    left_out = " " * node.body[0].col_offset + "# ..."
    gap: list[int] = []
    for index, line in enumerate([*lines, None]):
        if index < len(lines) and index not in keep:
            gap.append(index)
            continue
        # What lies between two kept parts becomes one mark, or one blank line if it was blank.
        if gap:
            was_code = any((lines[hidden] or "").strip() for hidden in gap)
            for hidden in gap:
                lines[hidden] = None
            closing = "" if line is None else "\n"
            lines[gap[0]] = f"\n{left_out}{closing}" if was_code else ""
            gap = []
