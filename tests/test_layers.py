"""The import order of the design: a module imports only from lower lines, and packages have no cycles inside."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "efserve"

# From the top. Each entry is a module or a package below `efserve`; those on one line do not know one another.
LINES = (
    "__main__",
    "cli",
    "commands",
    "console interrupts",
    "server profiler converter loadtest predictor inspection simulator reports",
    "frontend",
    "client",
    "worker",
    "partitions",
    "engines",
    "transport",
    "planned",
    "routing planning placing",
    "codec comparison asks cold_starts",
    "batching counters stats arrivals room turns roofline",
    "repository profiles pairs records samples precision",
    "pbtxt config imaging packing intervals histogram devices graph_cost",
    "instance_groups batching_fields",
    "model_config partition shares reshapes",
    "inference noise triton_service",
    "tensors foreign files libcuda triton_messages programs",
    "errors reasons ctrl_c",
    "__init__",
)
HEIGHT = {part: len(LINES) - at for at, line in enumerate(LINES) for part in line.split()}


def module_name(path: Path) -> str:
    """Dotted name below `efserve`: `worker.handle`; a package is called by its own name."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def part_of(module: str) -> str:
    """The entry of `LINES` that a module belongs to."""
    return module.partition(".")[0]


def height(module: str) -> int:
    """The line that a module stands on, counted from below; above all others when it has none."""
    return HEIGHT.get(part_of(module), len(LINES) + 1)


def imports_of(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Modules below `efserve` that are imported anywhere in the code, functions included, and in which line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative imports are not used here"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.partition(".")[0] == "efserve":
                yield known_module(name.removeprefix("efserve").removeprefix(".")), node.lineno


def known_module(name: str) -> str:
    """The longest beginning of a dotted name below `efserve` that is a module: the rest are names in it."""
    while name and name not in MODULES:
        name = name.rpartition(".")[0]
    return name or "__init__"


IMPORTS = {name: list(imports_of(ast.parse(path.read_text(encoding="utf-8")))) for name, path in MODULES.items()}


def test_every_module_has_a_line() -> None:
    unknown = sorted({part_of(module) for module in MODULES} - HEIGHT.keys())
    assert not unknown, f"{', '.join(unknown)}: not in LINES of {__file__}; decide what they may know and add them"


def test_a_line_names_a_part_once() -> None:
    named = [part for line in LINES for part in line.split()]
    assert len(named) == len(set(named))


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_from_lower_lines(module: str) -> None:
    wrong = [
        f"{MODULES[module].relative_to(PACKAGE.parent)}:{line}: {module} imports {imported}, which stands "
        f"{'beside' if height(imported) == height(module) else 'above'} it"
        for imported, line in IMPORTS[module]
        if part_of(imported) != part_of(module) and height(imported) >= height(module)
    ]
    assert not wrong, "\n".join(wrong)


def test_there_are_no_cycles() -> None:
    graph = {module: {imported for imported, _ in found} - {module} for module, found in IMPORTS.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"modules import one another: {' -> '.join(reversed(error.args[1]))}")


def test_the_check_sees_every_way_to_import() -> None:
    code = """
import efserve
import efserve.errors as e
from efserve import tensors, __version__
from efserve.worker import handle
from efserve.worker.handle import Worker
def f():
    from efserve.cli import main
"""
    found = [name for name, _ in imports_of(ast.parse(code))]
    assert found == ["__init__", "errors", "tensors", "__init__", "worker.handle", "worker.handle", "cli"]
