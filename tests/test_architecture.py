"""Imports point down, the package is light to import, its table of names is true, and every module has its test file."""

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

import loralib as lora

PACKAGE = Path(lora.__file__).parent

LEVELS = [
    {
        "errors",
        "arguments",
        "choices",
        "config",
        "expressions",
        "patterns",
        "printing",
        "tensors",
        "architectures",
        "storage",
        "star_0_1",
    },
    {"ops", "quant"},
    {"adapters"},
    {"formats", "layers"},
    {"surgery", "utils"},
    {"checkpoints", "bank", "analysis"},
    {"train"},
    {"recipes"},
    {"cli"},
]
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}
# fmt: off
OPTIONAL = {
    "accelerate", "bitsandbytes", "datasets", "gguf", "huggingface_hub", "jinja2", "jsonargparse", "matplotlib", "numpy",
    "optimum", "pandas", "peft", "rich", "sacrebleu", "scipy", "sklearn", "tensorboard", "tokenizers", "torchao",
    "transformers", "triton", "trl", "yaml",
}
# fmt: on
HEAVY = OPTIONAL - {"numpy"}


# --- imports, read from the source ----------------------------------------------------------------------------------


def sources() -> dict[str, str]:
    """The dotted name of every module below the package, and its text. A package is called `x.__init__`."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts != ("__init__",):
            found[".".join(parts)] = path.read_text(encoding="utf-8")
    return found


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def nodes(node: ast.AST, function: str | None = None) -> Iterator[tuple[ast.AST, str | None]]:
    """Every node, those for type checkers included, with the function that it is in."""
    for child in ast.iter_child_nodes(node):
        inside = child.name if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) else function
        yield child, function
        yield from nodes(child, inside)


def imported(module: str, node: ast.AST, known: set[str]) -> set[str]:
    """The modules that an import statement names: ours relative to the package, as `.name`; others by their full name."""
    if isinstance(node, ast.Import):
        return {
            alias.name.replace("loralib", "", 1) if alias.name.split(".")[0] == "loralib" else alias.name
            for alias in node.names
        }
    if not isinstance(node, ast.ImportFrom):
        return set()
    if node.level:
        above = module.split(".")[: -node.level]
        base = ".".join([*above, *(node.module.split(".") if node.module else [])])
    elif node.module == "loralib" or str(node.module).startswith("loralib."):
        base = str(node.module).removeprefix("loralib").removeprefix(".")
    else:
        return {str(node.module)}
    parts = {".".join(part for part in (base, alias.name) if part) for alias in node.names}
    return {f".{part if {part, part + '.__init__'} & known else base}" for part in parts}


def edges(texts: dict[str, str]) -> dict[str, set[str]]:
    """For each module, those of ours that importing it imports (not what its functions import when they are called)."""
    found: dict[str, set[str]] = {}
    for module, text in texts.items():
        found[module] = set()
        for node, function in nodes(ast.parse(text)):
            if function is None:
                ours = {name[1:] for name in imported(module, node, set(texts)) if name.startswith(".") and name != "."}
                found[module] |= {name if name in texts else name + ".__init__" for name in ours} - {module}
    return found


def upward_imports(texts: dict[str, str]) -> list[str]:
    problems = []
    for module, text in texts.items():
        home = module.split(".")[0]
        if home.startswith("__") or home not in LEVEL:
            continue
        for node, _ in nodes(ast.parse(text)):
            for name in imported(module, node, set(texts)):
                target = name[1:].split(".")[0]
                if name.startswith(".") and target and LEVEL.get(target, len(LEVELS)) > LEVEL[home]:
                    problems.append(f"{module} imports {name}, which is above it")
    return problems


def hidden_imports(texts: dict[str, str]) -> list[str]:
    """Imports inside functions, of anything but optional packages; the command line may load its work late."""
    problems = []
    for module, text in texts.items():
        if module.split(".")[0] in ("cli", "__main__"):
            continue
        for node, function in nodes(ast.parse(text)):
            if function is not None:
                hidden = {name for name in imported(module, node, set(texts)) if name.split(".")[0] not in OPTIONAL}
                problems += [f"{module}: {function} imports {name}" for name in hidden]
    return problems


def cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Paths from a module back to itself. That `x.a` imports its own package is Python's doing, not a cycle of ours."""
    found: list[list[str]] = []
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> None:
        if module in path:
            found.append([*path[path.index(module) :], module])
        elif module not in done:
            for target in sorted(graph.get(module, ())):
                visit(target, [*path, module])
            done.add(module)

    for module in sorted(graph):
        visit(module, [])
    return found


def test_every_module_has_a_level():
    homes = {module.split(".")[0] for module in sources()} - {"__main__"}
    assert homes <= LEVEL.keys(), "give new modules a level"


def test_imports_only_point_down():
    assert upward_imports(sources()) == []


def test_nothing_but_optional_packages_is_imported_inside_functions():
    assert hidden_imports(sources()) == []


def test_imports_have_no_cycles():
    assert cycles(edges(sources())) == []


def test_adapters_and_formats_know_no_modules_of_models():
    graph = edges(sources())
    reached, todo = set(), ["formats.__init__", "formats.peft", "adapters.adapter"]
    while todo:
        module = todo.pop()
        if module not in reached:
            reached.add(module)
            todo += graph[module]
    assert not {module for module in reached if module.split(".")[0] in ("layers", "surgery")}


@pytest.mark.parametrize(
    "line",
    ["from .surgery import inject", "from . import surgery", "import loralib.surgery", "from loralib.surgery import merge"],
)
def test_an_import_that_points_up_is_seen(line):
    texts = sources() | {"config": line}
    assert [problem for problem in upward_imports(texts) if "config" in problem and ".surgery" in problem]


def test_an_upward_import_that_is_hidden_in_a_function_is_seen():
    texts = {"config": "def f():\n    from .layers import Linear", "layers": ""}
    assert upward_imports(texts) == ["config imports .layers, which is above it"]
    assert hidden_imports(texts) == ["config: f imports .layers"]


@pytest.mark.parametrize("line", ["import json", "from torch import nn", "from . import errors"])
def test_a_hidden_import_is_seen_unless_its_package_is_optional(line):
    assert hidden_imports({"surgery": f"class C:\n    def f(self):\n        if True:\n            {line}", "errors": ""})
    assert not hidden_imports({"surgery": "def f():\n    import transformers.utils\n    from scipy import stats"})


def test_a_cycle_inside_a_level_is_seen():
    texts = {"train": "from .surgery import inject", "surgery": "from . import train"}
    assert cycles(edges(texts)) == [["surgery", "train", "surgery"]]
    assert cycles(edges(texts | {"train": "def f():\n    from .surgery import inject"})) == []


def test_imports_for_type_checkers_are_seen_too():
    up = {"config": "if TYPE_CHECKING:\n    from .layers import Linear", "layers": ""}
    assert upward_imports(up) == ["config imports .layers, which is above it"]
    circle = {"a": "if TYPE_CHECKING:\n    from .b import B", "b": "from .a import A"}
    assert cycles(edges(circle)) == [["a", "b", "a"]]


# --- what importing costs -------------------------------------------------------------------------------------------


def loaded_by(code: str) -> set[str]:
    """The top-level packages that are loaded after `code` has run in a fresh interpreter."""
    report = "\nimport sys; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    run = subprocess.run([sys.executable, "-c", code + report], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


def test_import_loralib_does_not_even_load_torch():
    assert not loaded_by("import loralib") & {"torch", "safetensors", "numpy", *HEAVY}


def test_all_public_names_load_torch_and_nothing_heavier():
    loaded = loaded_by("import loralib\nfor name in loralib.__all__: getattr(loralib, name)")
    assert {"torch", "loralib"} <= loaded
    assert not loaded & HEAVY


def test_a_heavy_import_is_seen():
    assert loaded_by("import loralib, yaml") & HEAVY == {"yaml"}


# --- the table of names ---------------------------------------------------------------------------------------------


def names_for_type_checkers() -> dict[str | None, set[str]]:
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    block = next(node for node in tree.body if is_type_checking(node))
    return {node.module: {alias.name for alias in node.names} for node in block.body}


def test_the_tables_of_names_and_the_imports_for_type_checkers_agree():
    homes: dict[str | None, tuple[str, ...]] = {None: lora._SUBMODULES, **lora._HOMES, **lora._OF_0_1}
    assert names_for_type_checkers() == {home: set(names) for home, names in homes.items()}


@pytest.mark.parametrize("name", lora._SUBMODULES)
def test_a_submodule_is_an_attribute_right_after_import(name):
    loaded_by(f"import loralib, sys\nassert {name!r} in dir(loralib)\nassert loralib.{name} is sys.modules['loralib.{name}']")


def test_all_lists_every_name_once_and_each_can_be_had():
    own = [name for names in lora._HOMES.values() for name in names]
    of_0_1 = [*(name for names in lora._OF_0_1.values() for name in names), "layers", "name", "utils"]
    assert sorted(lora.__all__) == sorted(set(lora.__all__)) == sorted([*own, *of_0_1])
    for name in lora.__all__:
        assert hasattr(lora, name)
        assert name in dir(lora)
    assert all(getattr(lora, name).__module__.startswith("loralib.") for name in own)


def test_an_unknown_name_is_an_attribute_error_that_says_so():
    with pytest.raises(AttributeError, match="no attribute 'Lineer'"):
        lora.Lineer  # noqa: B018


# --- tests mirror the sources ---------------------------------------------------------------------------------------

TESTS = Path(__file__).parent
ELSEWHERE = {  # modules without a test file of their own, and why
    "architectures": "data: what is known of models by name; tests of surgery and recipes compare it with the models",
    "choices": "words only",
    "formats.diffusion_families": "data: tests/formats/test_original.py compares it with what diffusers makes of such files",
    "recipes.nlg.metrics.paper": "data: tests/recipes/nlg/test_scoring.py",
    "recipes.nlg.triples": "two data sets: tests/recipes/nlg/test_triples_dart.py and test_triples_webnlg.py",
}


def names_of_tests(module: str) -> set[str]:
    """The names that the test file of a module may have: its own, or with those of its packages before it."""
    parts = module.split(".")
    return {f"test_{'_'.join(parts[i:])}.py" for i in range(len(parts))}


def without_tests(modules: Iterable[str], tests: Iterable[Path]) -> set[str]:
    """Those of `modules` that no test file is named after, in the folder that mirrors their package or in one above it."""
    found = {(path.parent.parts, path.name) for path in tests}
    folders = {module: module.split(".")[:-1] for module in modules if not module.rpartition(".")[2].startswith("__")}
    return {
        module
        for module, folder in folders.items()
        if not any((tuple(folder[:n]), name) in found for n in range(len(folder) + 1) for name in names_of_tests(module))
    }


def test_every_module_has_its_test_file():
    tests = [path.relative_to(TESTS) for path in TESTS.rglob("test_*.py")]
    assert without_tests(sources(), tests) == set(ELSEWHERE)


def test_no_two_test_files_have_one_name():
    """pytest could not tell them apart when it collects both."""
    names = Counter(path.name for path in TESTS.rglob("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []


def test_a_module_without_its_test_file_is_seen():
    modules = ["a.b.c", "a.b.__init__", "d"]
    assert without_tests(modules, []) == {"a.b.c", "d"}
    for path in ("a/b/test_c.py", "a/b/test_b_c.py", "a/test_a_b_c.py", "test_c.py"):
        assert without_tests(modules, [Path(path), Path("test_d.py")]) == set()
    for path in ("b/test_c.py", "a/b/c/test_c.py", "a/b/test_cc.py", "a/b/test_c_d.py", "a/b/c.py"):
        assert without_tests(modules, [Path(path), Path("a/test_d.py")]) == {"a.b.c", "d"}
