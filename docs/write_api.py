"""Write docs/api/*.md: what each room of hls_foundry offers, from signatures and docstrings, and the HTTP API from its schema."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "api"
LEAD = "<!-- made by make docs -->\n"
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def pages() -> dict[str, str]:
    """The text of every page, by file name."""
    package = ROOT / "hls_foundry"
    rooms = {path.name: sorted(path.rglob("*.py")) for path in sorted(package.iterdir()) if (path / "__init__.py").is_file()}
    rooms["foundation"] = sorted(package.glob("*.py"))
    made = {f"{name}.md": _room(name, files) for name, files in rooms.items()}
    made["http.md"] = http_page()
    rows = [f"- [{name.removesuffix('.md')}]({name}): {text.split(chr(10))[3]}\n" for name, text in made.items()]
    lead = "\n# API\n\nPublic functions and classes, room by room, from their docstrings.\n\n"
    return {"README.md": f"{LEAD}{lead}{''.join(rows)}", **made}


def _room(name: str, files: list[Path]) -> str:
    """One room's page: a heading a module that offers something, the room's own words on top."""
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in files if path.name != "__main__.py"}
    purpose = next(ast.get_docstring(tree) or "" for path, tree in trees.items() if path.name == "__init__.py")
    parts = [LEAD, f"# hls_foundry.{name}\n\n" if name != "foundation" else "# hls_foundry\n\n", f"{purpose.splitlines()[0]}\n"]
    for path, tree in trees.items():
        if found := list(public(tree)):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            parts.append(f"\n## {module}\n\n{ast.get_docstring(tree) or ''}\n")
            parts += [_entry(definition) for definition in found]
    return "".join(parts)


def public(node: ast.Module | ast.ClassDef) -> Iterator[Definition]:
    """Functions and classes whose names do not start with an underscore; overloads count once."""
    for child in node.body:
        overload = isinstance(child, Definition) and any(ast.unparse(mark) == "overload" for mark in child.decorator_list)
        if isinstance(child, Definition) and not child.name.startswith("_") and not overload:
            yield child


def _entry(definition: Definition) -> str:
    """A function or class: its signature as code, its docstring, and of a class the methods that say something."""
    text = f"\n### {definition.name}\n\n```python\n{_signature(definition)}\n```\n\n{ast.get_docstring(definition) or ''}\n"
    if isinstance(definition, ast.ClassDef):
        told = [method for method in public(definition) if ast.get_docstring(method)]
        text += "".join(f"\n- `{_signature(method)}`\n{_indented(ast.get_docstring(method) or '')}\n" for method in told)
    return text


def _signature(definition: Definition) -> str:
    if not isinstance(definition, ast.ClassDef):
        marks = {ast.unparse(mark).split(".")[-1] for mark in definition.decorator_list}
        returns = f" -> {ast.unparse(definition.returns)}" if definition.returns else ""
        if marks & {"property", "cached_property"}:
            return f"{definition.name}{returns}"
        kind = "async def" if isinstance(definition, ast.AsyncFunctionDef) else "def"
        return f"{kind} {definition.name}({ast.unparse(definition.args)}){returns}"
    bases = f"({', '.join(map(ast.unparse, definition.bases))})" if definition.bases else ""
    fields = [f"    {ast.unparse(line)}" for line in definition.body if isinstance(line, ast.AnnAssign) and _named(line)]
    return "\n".join([f"class {definition.name}{bases}", *fields])


def _named(line: ast.AnnAssign) -> bool:
    return isinstance(line.target, ast.Name) and not line.target.id.startswith("_")


def _indented(text: str) -> str:
    return "\n".join(f"  {line}".rstrip() for line in text.splitlines())


def http_page() -> str:
    """The endpoint's routes, from the OpenAPI schema of the application."""
    sys.path.insert(0, str(ROOT))
    from hls_foundry.serving.app import create_app
    from hls_foundry.serving.settings import ServingSettings

    parts = [LEAD, "# HTTP\n\n", "The serving application's routes; each server has its schema at `/openapi.json`.\n"]
    for title, many in (("One model", False), ("Several models (`SAGEMAKER_MULTI_MODEL=true`)", True)):
        schema = create_app(ServingSettings.model_validate({"SAGEMAKER_MULTI_MODEL": many})).openapi()
        parts.append(f"\n## {title}\n")
        parts += [_route(path, verb, what) for path, verbs in schema["paths"].items() for verb, what in verbs.items()]
    return "".join(parts)


def _route(path: str, verb: str, what: dict[str, Any]) -> str:
    """One route: what it is for, its parameters, the formats of its body, its replies."""
    lines = [f"\n### {verb.upper()} {path}\n\n{inspect.cleandoc(what.get('description', ''))}\n\n"]
    for parameter in what.get("parameters", ()):
        lines.append(f"- `{parameter['name']}` ({parameter['in']}): {parameter.get('description', 'required')}\n")
    if body := what.get("requestBody"):
        lines.append(f"- body: {', '.join(f'`{kind}`' for kind in body['content'])}\n")
    for status, reply in what["responses"].items():
        kinds = ", ".join(f"`{kind}`" for kind in reply.get("content", ()))
        lines.append(f"- {status}: {reply['description']}{f' ({kinds})' if kinds else ''}\n")
    return "".join(lines)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    made = pages()
    for old in {path.name for path in FOLDER.glob("*.md")} - set(made):
        (FOLDER / old).unlink()
    for name, text in made.items():
        (FOLDER / name).write_text(text, encoding="utf-8")
