"""Print the size ledger: files, lines of code, and the median and largest file and function of every package.

A line of code holds at least one token that is neither comment nor docstring. Usage: python tools/sizes.py [FOLDER]
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from pathlib import Path
from statistics import median

LAYOUT = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)


def code_lines(text: str) -> set[int]:
    """The numbers of the lines that hold code."""
    tree = ast.parse(text)
    prose = {
        line
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    code = {
        line for t in tokens if t.type not in LAYOUT and t.string.strip() for line in range(t.start[0], t.end[0] + 1)
    }
    return code - prose


def functions(text: str, lines: set[int]) -> list[tuple[int, str]]:
    """Lines of code and name of every function and method."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            span = range(node.lineno, (node.end_lineno or node.lineno) + 1)
            found.append((len(lines.intersection(span)), node.name))
    return found


def row(name: str, sizes: list[tuple[int, str]], inner: list[tuple[int, str]]) -> str:
    """One line of the ledger."""
    largest, where = max(sizes)
    longest, function = max(inner, default=(0, "-"))
    lines, spans = [n for n, _ in sizes], [n for n, _ in inner] or [0]
    files = f"{len(lines):>5}{sum(lines):>8}{median(lines):>8.0f}{largest:>6} {where:<34}"
    return f"{name:<16}{files}{median(spans):>6.0f}{longest:>6} {function}"


def main() -> None:
    """Measure a source folder, `src/weigh` by default."""
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent.parent / "src" / "weigh"
    packages: dict[str, tuple[list[tuple[int, str]], list[tuple[int, str]]]] = {}
    for path in sorted(root.rglob("*.py")):
        text = path.read_text()
        lines = code_lines(text)
        place = path.relative_to(root)
        for key in (place.parts[0].removesuffix(".py"), "total"):
            sizes, inner = packages.setdefault(key, ([], []))
            sizes.append((len(lines), str(place)))
            inner += [(n, f"{place}:{name}") for n, name in functions(text, lines)]
    packages["total"] = packages.pop("total")
    print(f"{'':<16}{'files':>5}{'lines':>8}{'median':>8}{'file':>6} {'largest':<34}{'median':>6}{'func':>6} largest")
    for key, (sizes, inner) in packages.items():
        print(row(key, sizes, inner))


if __name__ == "__main__":
    main()
