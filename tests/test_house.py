"""The shape of the house: what imports what, what is public, what the README says."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fiited_jax
import pallas_kernels

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "fiited_jax").rglob("*.py"))
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]

# Imports run one way: a module may import what stands on a line above it.
LAYERS = [
    {"version", "files"},
    {"checks", "elementwise", "keys", "precision", "row_numbers", "scorers"},
    {"sparse_optim"},
    {"sizes"},
    {"budget"},
    {"config", "state", "utility"},
    {"bidding", "chunk_pool", "doorkeeper", "extent", "handle", "pooling"}
    | {"table_rules", "utility_scale"},
    {"arena", "coarse", "dense_tables", "key_rows", "page_table", "shared_pool"},
    {"fresh"},
    {"admission", "invariants", "memory", "pinning", "relocation", "update"},
    {"pruning", "vector_grads"},
    {"store"},
    {"chip_cases", "nn", "warm_start"},
    {"models", "methods", "data"},
    {"training"},
    {"comparison"},
    {"cli"},
]


def layer(name):
    return next(i for i, names in enumerate(LAYERS) if name in names)


def imports(path):
    """The top-level modules of the package that a file imports."""
    parts = path.relative_to(ROOT / "fiited_jax").parts
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom) or node.level == 0:
            continue
        if node.level < len(parts):  # within a sub-package
            continue
        yield from (
            [node.module.split(".")[0]]
            if node.module
            else [alias.name for alias in node.names]
        )


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_downwards(path):
    name = path.relative_to(ROOT / "fiited_jax").parts[0].removesuffix(".py")
    if name == "__init__":
        return
    for imported in imports(path):
        assert layer(imported) < layer(name), (name, imported)


def test_kernels_know_nothing_of_the_store():
    for path in (ROOT / "pallas_kernels").rglob("*.py"):
        assert "fiited" not in path.read_text()


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_module_lists_what_is_public(path):
    tree = ast.parse(path.read_text())
    names = [
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    ]
    assert "__all__" in names or path.name == "version.py"
    assert ast.get_docstring(tree)


@pytest.mark.parametrize("package", [fiited_jax, pallas_kernels])
def test_public_names_exist_and_are_documented(package):
    for name in package.__all__:
        value = getattr(package, name)
        if callable(value) or isinstance(value, type(sys)):
            assert value.__doc__, name


def test_the_core_needs_no_training_package():
    script = (
        "import sys, fiited_jax\n"
        "print([m for m in ('polars', 'tyro', 'matplotlib', 'sklearn')"
        " if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_refers_to_is_there(page):
    text = page.read_text()
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", text)
    named = re.findall(r"\b(?:benchmarks|notebooks|docs)/[\w/.]*\w", text)
    for path in [page.parent / link for link in links] + [
        ROOT / name for name in named
    ]:
        assert path.exists(), path


def test_the_readme_example_runs(capsys):
    blocks = re.findall(
        r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL
    )
    assert len(blocks) == 1
    exec(compile(blocks[0], "README.md", "exec"), {})
    loss, ratio = map(float, capsys.readouterr().out.split())
    assert loss < 0.01
    assert ratio > 10
