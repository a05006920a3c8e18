"""Write the reference: the public module, a page per package, and the commands.

`make docs` runs it. The pages are slices of the source, which is parsed and not imported, so they
do not depend on what is installed; comments beside a class's fields are part of them.
"""

from __future__ import annotations

import argparse
import ast
import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import fastrun
from fastrun.main import parsers

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
PACKAGES = ("kernels", "search_spaces", "graph", "tuner")  # parts of `fastrun`
# What every file of a folder defines is documented where the contract is.
CONTRACTS = {
    "fastrun.kernels.conv": ("Schedule", "why_not", "heuristic", "build"),
    "fastrun.kernels.attention": ("why_not", "heuristic", "build"),
    "fastrun.kernels.conv.im2col": ("Schedule",),
    "fastrun.kernels.conv.winograd": ("Schedule",),
    "fastrun.search_spaces.conv": ("space",),
    "fastrun.search_spaces.attention": ("space",),
}
MADE = "Made by `make docs` from the docstrings; edit those."

Definition = ast.FunctionDef | ast.ClassDef


@dataclass(frozen=True)
class Module:
    """A source file and its parse; `name` is dotted."""

    name: str
    source: str
    tree: ast.Module

    @property
    def lines(self) -> list[str]:
        """The source's lines."""
        return self.source.splitlines()

    @property
    def contract(self) -> tuple[str, ...]:
        """Names that mean here what they mean in every file of the folder."""
        return CONTRACTS.get(self.name.rpartition(".")[0], ())


def read(name: str) -> Module:
    """The module that is imported by this name."""
    place = ROOT / name.replace(".", "/")
    path = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    source = path.read_text()
    return Module(name, source, ast.parse(source))


def modules(package: str) -> Iterator[Module]:
    """The package's modules, itself first, in alphabetical order."""
    for path in sorted((ROOT / "fastrun" / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield read(".".join(parts).removesuffix(".__init__"))


def public(node: ast.Module | ast.ClassDef) -> list[Definition]:
    """The functions and classes defined in `node` whose names do not begin with an underscore."""
    kinds = (ast.FunctionDef, ast.ClassDef)
    return [n for n in node.body if isinstance(n, kinds) and not n.name.startswith("_")]


def undocumented(package: str) -> Iterator[str]:
    """Public names that say nothing of themselves, and that no base class or contract explains."""
    found = list(modules(package))
    classes = {c.name: c for m in found for c in public(m.tree) if isinstance(c, ast.ClassDef)}
    for module in found:
        if not ast.get_docstring(module.tree):
            yield module.name
        for node in public(module.tree):
            if not ast.get_docstring(node) and node.name not in module.contract:
                yield f"{module.name}.{node.name}"
            if isinstance(node, ast.ClassDef):
                yield from _undocumented_methods(module, node, classes)


def _undocumented_methods(
    module: Module, node: ast.ClassDef, classes: dict[str, ast.ClassDef]
) -> Iterator[str]:
    bases = [classes[b.id] for b in node.bases if isinstance(b, ast.Name) and b.id in classes]
    inherited = {method.name for base in bases for method in public(base)}
    for method in public(node):
        if not ast.get_docstring(method) and method.name not in inherited:
            yield f"{module.name}.{node.name}.{method.name}"


def page(package: str) -> str:
    """The Markdown page of a package."""
    head, *others = modules(package)
    contents = [f"* [`{m.name}`](#{_anchor(m.name)}): {_summary(m.tree)}" for m in others]
    parts = [f"# `{head.name}`", MADE, _prose(head.tree), "\n".join(contents)]
    for part in others:
        parts += [f"## `{part.name}`", _prose(part.tree)]
        parts += [text for node in public(part.tree) for text in _entry(part, node)]
    return "\n\n".join(filter(None, parts)) + "\n"


def public_page() -> str:
    """The Markdown page of what `import fastrun` offers, in alphabetical order."""
    parts = [f"# `{fastrun.__name__}`", MADE, _prose(read("fastrun").tree)]
    for name, home in sorted(fastrun._HOMES.items(), key=lambda item: item[0].lower()):
        found = read(home)
        (node,) = (node for node in public(found.tree) if node.name == name)
        parts += _entry(found, node)
    plot = read("fastrun.plot")
    parts += ["## `fastrun.plot`", _prose(plot.tree)]
    parts += [text for node in public(plot.tree) for text in _entry(plot, node)]
    return "\n\n".join(filter(None, parts)) + "\n"


def _entry(module: Module, node: Definition) -> Iterator[str]:
    """What is to be said of a function or class."""
    if isinstance(node, ast.ClassDef):
        members = [_member(module, method) for method in public(node)]
        yield f"### `{node.name}`"
        yield f"```python\n{_class(module, node)}\n```"
        yield _prose(node)
        yield "Members:\n\n" + "\n".join(members) if members else ""
    elif node.name not in module.contract:
        yield f"### `{node.name}`"
        yield f"```python\n{_header(module, node)} ...\n```"
        yield _prose(node)


def _header(module: Module, node: Definition) -> str:
    """The source from `def` or `class`, decorators included, to the colon."""
    begin = min([node.lineno, *(d.lineno for d in node.decorator_list)])
    text = "\n".join(module.lines[begin - 1 : node.body[0].lineno - 1])
    if node.body[0].lineno == node.lineno:  # all in one line
        text = module.lines[node.lineno - 1][: node.body[0].col_offset].rstrip()
    return text.rstrip()


def _class(module: Module, node: ast.ClassDef) -> str:
    """The class's header, its fields with their comments, and how it is made."""
    fields = [
        line
        for n in node.body
        if isinstance(n, ast.AnnAssign | ast.Assign) and not _target(n).startswith("_")
        for line in module.lines[n.lineno - 1 : n.end_lineno]
    ]
    made = [
        f"{_header(module, n)} ..."
        for n in node.body
        if isinstance(n, ast.FunctionDef) and n.name == "__init__"
    ]
    return "\n".join([_header(module, node), *([*fields, *made] or ["    ..."])])


def _target(node: ast.AnnAssign | ast.Assign) -> str:
    target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
    return ast.unparse(target)


def _member(module: Module, node: Definition) -> str:
    """A bullet for a method, property or nested class."""
    if isinstance(node, ast.ClassDef):
        signature = node.name
    else:
        arguments = _header(module, node).partition(f"def {node.name}")[2].removesuffix(":")
        plain = re.sub(r"\s+", " ", arguments).replace("( ", "(").replace(", )", ")")
        plain = re.sub(r"^\((self|cls)(, )?", "(", plain)
        decorators = {ast.unparse(d) for d in node.decorator_list}
        if decorators & {"property", "functools.cached_property", "cached_property"}:
            plain = plain.replace("() ->", ":")
        signature = node.name + plain
    text = _prose(node) or "see the base class"
    return f"* `{signature}`: " + textwrap.indent(text, "  ").lstrip()


def _prose(node: ast.Module | Definition) -> str:
    """The docstring as Markdown: sections become lists, angle brackets are kept."""
    text = ast.get_docstring(node) or ""
    text = re.sub(r"^(Raises|Every method raises):\n((?:    .*\n?)+)", _section, text, flags=re.M)
    spans = re.split(r"(`+[^`]+`+)", text)
    spans[::2] = [re.sub(r"<(?=\w)", "&lt;", span) for span in spans[::2]]
    return "".join(spans).rstrip()


def _section(match: re.Match[str]) -> str:
    entries = re.sub(r"\n     +", " ", match[2].rstrip()).splitlines()
    listed = [re.sub(r"^    (\w+): ", r"* `\1`: ", entry) for entry in entries]
    return "\n".join([f"{match[1]}:", "", *listed, ""])


def _summary(node: ast.Module) -> str:
    return (ast.get_docstring(node) or "").partition("\n")[0]


def _anchor(heading: str) -> str:
    """GitHub's name for a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def command_page() -> str:
    """The Markdown page of the command line."""
    parser, commands = parsers()
    parts = [
        "# Commands",
        "Made by `make docs` from what `--help` says; edit that.",
        f"{parser.description}\n\n{parser.epilog}",
        "Exit codes: 0 success, 2 a mistake that the message explains, 130 an interruption; "
        "1 is `fastrun verify`'s for a winner that no longer wins.",
    ]
    parts += [f"## {command.prog}\n\n{_command(command)}" for command in _leaves(commands)]
    return "\n\n".join(parts) + "\n"


def _leaves(commands: Mapping[str, argparse.ArgumentParser]) -> Iterator[argparse.ArgumentParser]:
    """Commands, those of commands in place of their parents."""
    for command in commands.values():
        inner = [a for a in command._actions if isinstance(a, argparse._SubParsersAction)]
        if inner:
            yield from _leaves(inner[0].choices)
        else:
            yield command


def _command(command: argparse.ArgumentParser) -> str:
    actions = [a for a in command._actions if not isinstance(a, argparse._HelpAction)]
    places = [_place(a) for a in actions if not a.option_strings]
    options = [a for a in actions if a.option_strings]
    usage = " ".join([command.prog, *places, *(["[OPTIONS]"] if options else [])])
    rows = [f"| `{_spelled(a)}` | {_cell(a)} |" for a in actions if a.option_strings or a.help]
    said = (command.description or "").strip()
    parts = [f"```text\n{usage}\n```", said[:1].upper() + said[1:].rstrip(".") + "."]
    if rows:
        parts.append("\n".join(["| argument | meaning |", "|---|---|", *rows]))
    return "\n\n".join(parts)


def _place(action: argparse.Action) -> str:
    """A positional argument in a usage line."""
    name = str(action.metavar or action.dest)
    return {"+": f"{name}...", "*": f"[{name}...]", "?": f"[{name}]"}.get(str(action.nargs), name)


def _spelled(action: argparse.Action) -> str:
    """An argument with what it takes."""
    if not action.option_strings:
        return str(action.metavar or action.dest)
    takes = action.metavar or ("\\|".join(action.choices) if action.choices else "")
    takes = "" if action.nargs == 0 else str(takes)
    takes = f"[{takes}]" if action.nargs == "?" else takes
    return f"{action.option_strings[-1]} {takes}".rstrip()


def _cell(action: argparse.Action) -> str:
    return (action.help or "").replace("|", "\\|").replace("<", "&lt;")


def pages() -> dict[str, str]:
    """Every page of the reference by the name of its file in this folder."""
    made = {f"{package}.md": page(package) for package in PACKAGES}
    return {"fastrun.md": public_page(), **made, "cli.md": command_page()}


if __name__ == "__main__":
    for name, text in pages().items():
        (HERE / name).write_text(text)
