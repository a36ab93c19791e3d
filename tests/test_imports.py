"""Who may import whom, and what must never be imported before it is needed."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIGHT = {"pydantic", "pydantic_core", "pluggy"}
HEAVY = {"torch", "numpy", "safetensors"}

LAYERS = [  # the first prefix that fits; (prefix, layer, layers it may import, other packages it may import)
    (("errors", "sites", "component", "hookspecs"), 1, {1}, LIGHT),
    (("cli",), 2, {1, 2}, LIGHT | {"rich"}),
    (("", "__main__", "registry", "discovery", "config", "artifacts.manifest", "pipeline.spec", "pipeline.wiring"),
     2, {1, 2}, LIGHT | {"yaml"}),
    (("kits.affine_config", "kits.hf_config", "kits.template_config"), 2, {1, 2}, LIGHT),  # what declarations share
    (("interfaces",), 3, {1, 3}, {"torch", "typing_extensions"}),
    (("runtime", "kits", "artifacts"), 4, {1, 2, 3, 4}, LIGHT | HEAVY | {"transformers", "tokenizers", "jinja2"}),
    (("pipeline",), 5, {1, 2, 3, 4, 5}, LIGHT | HEAVY | {"transformers"}),
    (("testing",), 6, {1, 2, 3, 4, 5, 6}, LIGHT | HEAVY | {"pytest", "transformers", "tokenizers"}),
]
ANYWHERE = {  # package -> files of the core that may import it, even inside functions
    "transformers": ("reprbasis/kits/hf", "reprbasis/pipeline/facts.py", "reprbasis/testing/"),
    "tokenizers": ("reprbasis/kits/hf", "reprbasis/testing/"),
    "jinja2": ("reprbasis/kits/hf",),  # the language of chat templates
    "rich": ("reprbasis/cli/",),
    "reprbasis.testing": ("reprbasis/testing/",),
    "pickle": (),
}


def python_files(folder):
    return [p for p in sorted(folder.rglob("*.py")) if "templates" not in p.parts and "tests" not in p.parts]


def imports(path, package):
    """(module, whether it is imported when the file is) for every import, without those for type checkers only."""
    def visit(node, top):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.orelse:
                yield from visit(child, top)
            return
        if isinstance(node, ast.Import):
            yield from ((alias.name, top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from ([(module, top)] if node.module else [(f"{module}.{alias.name}", top) for alias in node.names])
        inside = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            yield from visit(child, top and not inside)

    yield from visit(ast.parse(path.read_text(encoding="utf-8")), True)


def within(module, prefixes):
    return any(module == p or module.startswith(p + ".") for p in prefixes)


def layer(module):
    short = module.removeprefix("reprbasis").removeprefix(".")
    for prefixes, number, below, packages in LAYERS:
        if short in prefixes or within(short, [p for p in prefixes if p]):
            return number, below, packages
    return layer(module.rpartition(".")[0])  # a name imported from the package itself


def core_imports():
    for path in python_files(ROOT / "reprbasis"):
        relative = path.relative_to(ROOT)
        package = ".".join(relative.parts[:-1])
        name = package if path.stem == "__init__" else f"{package}.{path.stem}"
        for module, top in imports(path, package):
            yield str(relative), name, module, top


def test_layers_of_the_core():
    wrong = []
    for file, name, module, top in core_imports():
        _, below, packages = layer(name)
        head = module.partition(".")[0]
        if not top or head in sys.stdlib_module_names:
            continue
        if not (layer(module)[0] in below if head == "reprbasis" else head in packages):
            wrong.append(f"{file} imports {module}")
    assert wrong == []


def test_what_no_function_may_import_either():
    wrong = [f"{file} imports {module}" for file, _, module, _ in core_imports()
             for package, homes in ANYWHERE.items() if within(module, [package]) and not file.startswith(homes)]
    assert wrong == []


def plugin_folders():
    return sorted(p.parent for p in ROOT.glob("plugins/*/pyproject.toml"))


@pytest.mark.parametrize("folder", plugin_folders(), ids=lambda p: p.name)
def test_a_plugin_imports_the_core_and_itself_only(folder):
    own = folder.name.replace("-", "_")
    others = {p.name.replace("-", "_") for p in plugin_folders()} - {own}
    wrong = []
    for path in python_files(folder / own):
        package = ".".join(path.relative_to(folder).parts[:-1])
        for module, top in imports(path, package):
            if within(module, others) or within(module, ["pickle"]):
                wrong.append(f"{path.relative_to(folder)} imports {module}")
            if top and path.name in ("plugin.py", "config.py", "__init__.py") and path.parent.name == own:
                heavy = module.partition(".")[0] in {*HEAVY, "transformers", "rich", "scipy"}
                if heavy or (within(module, ["reprbasis"]) and layer(module)[0] > 2):
                    wrong.append(f"{path.relative_to(folder)} imports {module}: a declaration must stay light")
    assert wrong == []


FRESH = {
    "import reprbasis": "import reprbasis",
    "light names": "from reprbasis import ComponentConfig, Port, Selection, Site, Sites, Use, create, hookimpl",
    "reprbasis plugins": "from reprbasis.cli.main import main; assert main(['plugins']) == 0",
    "reprbasis check": "from reprbasis.cli.main import main; assert main(['check', {quickstart!r}]) == 0",
    "plugins schema": "from reprbasis.cli.main import main; assert main(['plugins', 'schema']) == 0",
}


@pytest.mark.parametrize("code", FRESH.values(), ids=FRESH)
def test_nothing_heavy_in_a_fresh_interpreter(code):
    code = code.format(quickstart=str(ROOT / "examples" / "quickstart.yaml"))
    heavy = "{'torch', 'transformers', 'numpy', 'rich'}"
    script = f"import sys\n{code}\nprint('heavy:', *sorted({heavy} & set(sys.modules)))"
    environment = {k: v for k, v in os.environ.items() if k != "REPRBASIS_PLUGINS"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].strip() == "heavy:"


def test_public_names_exist():
    import reprbasis

    assert set(reprbasis.__all__) <= set(dir(reprbasis))
    for name in reprbasis.__all__:
        assert getattr(reprbasis, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        reprbasis.nothing  # noqa: B018


def test_the_function_registry_survives_the_import_of_the_submodule():
    import reprbasis
    import reprbasis.registry

    assert callable(reprbasis.registry)
