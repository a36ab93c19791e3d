"""A toy plugin for the tests of registry, config, pipeline and command line; distributions installed by pip; a tiny model."""

import os
import re
import shlex
import subprocess
import sys
from types import ModuleType

import pytest
from pydantic import Field

from reprbasis import Component, ComponentConfig, Port, Sites, Use, hookimpl
from reprbasis.registry import Registry


class Empty(ComponentConfig):
    pass


class ModelOptions(ComponentConfig):
    checkpoint: str = "tiny"
    """Which one."""
    layers: int = Field(3, ge=1)
    """Blocks."""


class Schedule(ComponentConfig):
    rate: float = 1e-3
    """Learning rate."""


class LearnerOptions(ComponentConfig):
    width: int = Field(16, ge=1)
    """Latents."""
    schedule: Schedule = Schedule()
    """How the rate changes."""


class HarvestOptions(ComponentConfig):
    corpus: Use["corpus"]  # noqa: F821
    """Text."""
    sites: Sites = "resid.*"
    """Where."""
    tokens: int = Field(100, ge=1)
    """How many."""


class LearnOptions(ComponentConfig):
    learner: Use["learner"]  # noqa: F821
    """Which."""


class EvaluateOptions(ComponentConfig):
    evaluators: tuple[Use["evaluator"], ...] = ()  # noqa: F821
    """Which."""
    sites: Sites | None = None
    """Where."""


COMPONENTS = [
    Component("model", "toy", ModelOptions, "toy_plugin:Toy", "A toy", provides={"gradients"}),
    Component("corpus", "lines", Empty, "toy_plugin:Missing", "Lines"),
    Component("corpus", "talk", Empty, "toy_plugin:Missing", "Answers", requires={"model": {"generate"}}),
    Component("learner", "sparse", LearnerOptions, "toy_plugin:Toy", "Sparse", provides={"affine-decoder"}),
    Component("learner", "opaque", LearnerOptions, "nowhere_to_be_found.x:Y", "Opaque"),
    Component("evaluator", "table", Empty, "toy_plugin:Missing", "Table", requires={"learner": {"affine-decoder"}}),
    Component("reporter", "quiet", Empty, "toy_plugin:Quiet", "Nothing"),
    Component("step", "harvest", HarvestOptions, "toy_plugin:Harvest", "Harvest", output="activations",
              needs_model=True),
    Component("step", "learn", LearnOptions, "toy_plugin:Plain", "Learn", output="basis",
              inputs=(Port("activations", "activations"),)),
    Component("step", "evaluate", EvaluateOptions, "toy_plugin:Plain", "Evaluate", output="findings",
              inputs=(Port("basis", "basis"), Port("activations", "activations", optional=True))),
    Component("step", "draw", Empty, "toy_plugin:Plain", "Draw", output="findings",
              inputs=(Port("basis", "basis", requires=frozenset({"affine-decoder"})),)),
]


class Plugin:
    """An object with a hook, as in a notebook."""

    def __init__(self, components):
        self.components = components

    @hookimpl
    def reprbasis_register(self, register):
        for component in self.components:
            register(component)


def toy_module():
    """The implementations, in a module of their own."""
    from reprbasis.errors import Problem
    from reprbasis.interfaces.model import ModelAdapter, ModelInfo
    from reprbasis.interfaces.reporter import Reporter
    from reprbasis.interfaces.step import Step
    from reprbasis.sites import Site

    class Toy(ModelAdapter):
        @classmethod
        def describe(cls, config):
            sites = [Site("embed"), *(Site("resid", i) for i in range(config.layers)), Site("final")]
            return ModelInfo("toy", config.layers, 8, 32, 2, 2, dict.fromkeys(sites, 8))

    class Plain(Step):
        def run(self, context, **inputs):
            raise NotImplementedError

    class Harvest(Plain):
        @classmethod
        def check(cls, config, info):
            return [Problem("too many tokens", do="take fewer")] if config.tokens > 10**6 else []

    class Quiet(Reporter):
        pass

    module = ModuleType("toy_plugin")
    module.Toy, module.Plain, module.Harvest, module.Quiet = Toy, Plain, Harvest, Quiet
    return module


@pytest.fixture
def make_plugin():
    return Plugin


@pytest.fixture
def toy(monkeypatch):
    """A registry that offers the toy plugin and knows of one more learner."""
    monkeypatch.setitem(sys.modules, "toy_plugin", toy_module())
    registry = Registry({"learner": {"jumping": "reprbasis-jumping"}})
    registry.add(Plugin(COMPONENTS), origin="toys", version="1.0")
    return registry


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A tiny random model on disk."""
    from transformers import LlamaConfig

    from reprbasis.testing.models import tiny_checkpoint

    shape = {"num_hidden_layers": 3, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4,
             "num_key_value_heads": 2, "vocab_size": 320, "max_position_embeddings": 256, "tie_word_embeddings": False}
    return tiny_checkpoint(tmp_path_factory.mktemp("model"), LlamaConfig(**shape))


@pytest.fixture(scope="session")
def python():
    """Run Python in a fresh interpreter, with a folder of third-party distributions on its path if `site` is given."""
    def run(*command, site=None, **options):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": "" if site is None else str(site)}
        return subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, check=False,
                              env=environment, timeout=400, **options)
    return run


@pytest.fixture(scope="session")
def pip_install(python, tmp_path_factory):
    """Install a distribution with neither network nor dependencies; gives the folder for `site`."""
    def install(project):
        pytest.importorskip("hatchling", reason="building a distribution offline needs hatchling")
        folder = tmp_path_factory.mktemp("site")
        done = python("-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index",
                      "--disable-pip-version-check", "--target", folder, project)
        assert done.returncode == 0, done.stderr
        return folder
    return install


@pytest.fixture(scope="session")
def written_by_new(tmp_path_factory):
    """What the command `reprbasis new` that an example's README gives writes: relative name -> bytes."""
    def write(example, project):
        from reprbasis.cli.main import main

        command = shlex.split(re.search(r"^reprbasis (new .*)$", (example / "README.md").read_text(), re.MULTILINE)[1])
        folder = tmp_path_factory.mktemp("new")
        assert main([*command, "--into", str(folder)]) == 0
        root = folder / project.name
        return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}
    return write
