"""What a set of C headers declares, as numbers: the compiler says it, of names that a parser finds.

The parser is pycparser, which cffi brings along. It names structs, fields and enumerators; values, offsets and sizes
are printed by a program compiled against those headers, so that nothing is computed here.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pycparser import c_ast, c_parser  # type: ignore[import-untyped]

# What glibc's and the kernel's headers use beyond C99, for a parser that knows C99.
_FOR_THE_PARSER = ("-D__attribute__(x)=", "-D__extension__=", "-D__inline=", "-D__signed__=signed", "-D__int128=long")
_FLAGS = ("-w", "-U_FORTIFY_SOURCE")


@dataclass(frozen=True)
class Field:
    """A field of a struct: offset and size in bytes, None as the size of a flexible array; whether it has a sign."""

    offset: int
    size: int | None
    element: int
    signed: bool


@dataclass(frozen=True)
class Struct:
    size: int
    alignment: int
    fields: dict[str, Field]


@dataclass(frozen=True)
class HeaderFacts:
    """What headers declare.

    Attributes:
        constants: The value of every macro and enumerator that is a number; ioctls are among them.
        structs: The layout of every struct and union with a tag.
        others: Macros that are no numbers: strings, macros with arguments, guards.
    """

    constants: dict[str, int]
    structs: dict[str, Struct]
    others: frozenset[str]

    @property
    def names(self) -> frozenset[str]:
        """Everything that is compared."""
        return frozenset(self.constants) | frozenset(f"struct {name}" for name in self.structs)


def read_headers(headers: Sequence[Path], include: Sequence[Path], work: Path) -> HeaderFacts:
    """What the headers themselves declare, without what they include from elsewhere.

    Args:
        headers: The files.
        include: Folders in which they find what they include.
        work: An empty folder for the program.
    """
    lines = "".join(f'#include "{header}"\n' for header in headers)
    folders = [f"-I{folder}" for folder in include]
    macros, others = _macros(lines, folders, headers)
    enumerators, structs = _declared(lines, folders, headers)
    values = _ask(lines, folders, [*macros, *enumerators], structs, work)
    constants = {name: int(value) for kind, name, value in values if kind == "C"}
    layouts = {}
    for tag, fields in structs.items():
        found = {name: words.split() for kind, name, words in values if kind == "F"}
        laid_out = {}
        for field, flexible in fields.items():
            offset, size, element, signed = (int(word) for word in found[f"{tag}.{field}"])
            laid_out[field] = Field(offset, None if flexible else size, element, bool(signed))
        (size_words,) = [words.split() for kind, name, words in values if (kind, name) == ("S", tag)]
        layouts[tag] = Struct(int(size_words[0]), int(size_words[1]), laid_out)
    return HeaderFacts(constants, layouts, frozenset(others))


def _gcc(*arguments: str, code: str) -> str:
    command = ["gcc", *_FLAGS, *arguments, "-x", "c", "-"]
    return subprocess.run(command, input=code, capture_output=True, text=True, check=True).stdout


def _from(text: str, headers: Sequence[Path]) -> Iterator[tuple[bool, str]]:
    """The lines of preprocessed code, each with whether it came from one of the headers."""
    ours = {str(header) for header in headers}
    inside = False
    for line in text.splitlines():
        if marker := re.match(r'# \d+ "([^"]*)"', line):
            inside = marker[1] in ours
        yield inside, line


def _macros(lines: str, folders: list[str], headers: Sequence[Path]) -> tuple[list[str], list[str]]:
    """The macros that may be numbers, and the others."""
    numbers: list[str] = []
    others: list[str] = []
    for inside, line in _from(_gcc("-E", "-dD", *folders, code=lines), headers):
        define = re.match(r"#define (\w+)(\(?)(.*)", line)
        if not inside or define is None:
            continue
        name, arguments, value = define.groups()
        no_number = arguments or not value.strip() or '"' in value
        (others if no_number else numbers).append(name)
    return list(dict.fromkeys(numbers)), others


def _declared(lines: str, folders: list[str], headers: Sequence[Path]) -> tuple[list[str], dict[str, dict[str, bool]]]:
    """The enumerators; and of each struct the fields, with whether it is a flexible array."""
    text = _gcc("-E", *_FOR_THE_PARSER, *folders, code=lines)
    tree = c_parser.CParser().parse("\n".join(line for _, line in _from(text, headers)))
    ours = {str(header) for header in headers}
    enumerators: list[str] = []
    structs: dict[str, dict[str, bool]] = {}

    class Visitor(c_ast.NodeVisitor):  # type: ignore[misc]  # pycparser has no types
        def visit_Enumerator(self, node: Any) -> None:  # noqa: N802 - pycparser's
            if node.coord.file in ours:
                enumerators.append(node.name)

        def visit_Struct(self, node: Any) -> None:  # noqa: N802
            if node.coord.file in ours and node.name and node.decls is not None:
                structs[node.name] = dict(_fields(node))
            self.generic_visit(node)

    Visitor().visit(tree)
    return enumerators, structs


def _fields(node: Any, prefix: str = "") -> Iterator[tuple[str, bool]]:
    for declaration in node.decls:
        kind = declaration.type
        inner = kind.type if isinstance(kind, c_ast.TypeDecl) else kind
        if isinstance(inner, c_ast.Struct | c_ast.Union) and inner.decls is not None:
            # Without a name its fields are the outer struct's; with one they are reached through it.
            yield from _fields(inner, f"{prefix}{declaration.name}." if declaration.name else prefix)
        if declaration.name:
            yield f"{prefix}{declaration.name}", isinstance(kind, c_ast.ArrayDecl) and kind.dim is None


def _ask(
    lines: str, folders: list[str], constants: Sequence[str], structs: dict[str, dict[str, bool]], work: Path
) -> list[tuple[str, str, str]]:
    """Compile and run a program that prints a value or layout a line."""
    code = [lines, "#include <stdio.h>\n#include <stddef.h>"]
    # An integer is asked whether it has a sign; of anything else it would be no constant expression.
    code.append("#define SIGN(x) _Generic((x), signed char: 1, short: 1, int: 1, long: 1, long long: 1, default: 0)")
    code.append("int main(void) {")
    for name in dict.fromkeys(constants):
        code.append(f'if (({name}) < 0) printf("C {name} %lld\\n", (long long)({name}));')
        code.append(f'else printf("C {name} %llu\\n", (unsigned long long)({name}));')
    for tag, fields in structs.items():
        kind = f"struct {tag}"
        code.append(f'printf("S {tag} %zu %zu\\n", sizeof({kind}), _Alignof({kind}));')
        for field, flexible in fields.items():
            at = f"(({kind} *)0)->{field}"
            size = "(size_t)0" if flexible else f"sizeof({at})"
            element = f"sizeof({at}[0])" if flexible else size
            sign = f"SIGN({at}[0])" if flexible else f"SIGN({at})"
            code.append(
                f'printf("F {tag}.{field} %zu %zu %zu %d\\n", offsetof({kind}, {field}), {size}, {element}, {sign});'
            )
    code.append("return 0; }\n")
    program = work / "facts"
    _gcc("-std=gnu11", *folders, "-o", str(program), code="\n".join(code))
    answer = subprocess.run([str(program)], capture_output=True, text=True, check=True).stdout
    words = (line.split(" ", 2) for line in answer.splitlines())
    return [(kind, name, rest) for kind, name, rest in words]
