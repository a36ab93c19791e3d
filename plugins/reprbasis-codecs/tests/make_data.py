"""Writes tests/data with the real libraries, so that the default suite can check imports without them.

    pip install sae-lens==6.54.12 && python tests/make_data.py saelens
    pip install --no-deps dictionary-learning==0.1.0 && python tests/make_data.py dictionary_learning
    pip install --no-deps eai-sparsify==1.3.3 && python tests/make_data.py sparsify
    pip install --no-deps llamascopium==2.0.0b34 && python tests/make_data.py llamascopium

Each library trains (SAELens) or holds (the others) small dictionaries, saves them itself, and computes codes and reconstructions
of a few rows. `made.json` tells the versions. The last three need more packages for training; their dictionary classes do not, so
only the modules of these classes are loaded.
"""

import contextlib
import importlib
import json
import math
import shutil
import sys
import tempfile
import types
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors.torch import save_file

DATA = Path(__file__).parent / "data"
D, K, N = 16, 64, 24


def draw(*size, seed):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def rows(n, seed):
    """Sums of 3 of 40 atoms around a mean, of norm about 12."""
    g = torch.Generator().manual_seed(seed)
    atoms = torch.nn.functional.normalize(draw(40, D, seed=99), dim=1)
    which = torch.rand(n, 40, generator=g).topk(3, dim=1).indices
    x = torch.zeros(n, 40).scatter_(1, which, torch.rand(n, 3, generator=g) + 0.5) @ atoms
    return 5 * x + 2 * draw(D, seed=98)


def keep(folder, x, codes, reconstruction):
    """What the library computed."""
    tensors = {"x": x, "codes": codes, "reconstruction": reconstruction}
    save_file({n: t.detach().contiguous() for n, t in tensors.items()}, folder / "expected.safetensors")


def fresh(library, package):
    """An empty folder for the checkpoints of a library."""
    out = DATA / library
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    made = {"library": package, "version": version(package), "torch": torch.__version__.partition("+")[0]}
    (out / "made.json").write_text(json.dumps(made, indent=1) + "\n")
    return out


def randomise(module, seed):
    """Random values for every parameter; what must be positive is made so by the caller."""
    with torch.no_grad():
        for i, p in enumerate(module.parameters()):
            p.copy_(draw(*p.shape, seed=seed + i) * (0.4 if p.ndim == 2 else 0.5))


def bare(package, *modules):
    """Modules of a package, without running the package's own __init__."""
    if package not in sys.modules:
        places = list(find_spec(package).submodule_search_locations)
        sys.modules[package] = types.ModuleType(package)
        sys.modules[package].__path__ = places
    return [importlib.import_module(f"{package}.{m}") for m in modules]


def saelens():
    """Trained by SAELens's own trainer: inference forms of the four architectures, and training checkpoints."""
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.registry import get_sae_training_class
    from sae_lens.training.sae_trainer import SAETrainer

    out = fresh("saelens", "sae-lens")
    cases = {
        "standard": ("standard", {"l1_coefficient": 0.5}, "inference"),
        "jumprelu": ("jumprelu", {"jumprelu_bandwidth": 0.5, "jumprelu_init_threshold": 0.3, "l0_coefficient": 0.05,
                                  "apply_b_dec_to_input": False}, "inference"),
        "topk": ("topk", {"k": 6}, "inference"),
        "gated": ("gated", {"l1_coefficient": 0.5}, "inference"),
        "batchtopk": ("batchtopk", {"k": 6}, "inference"),
        "topk-training": ("topk", {"k": 6}, "training"),
        "batchtopk-training": ("batchtopk", {"k": 6}, "training"),
        "gated-uncentred": ("gated", {"l1_coefficient": 0.5, "apply_b_dec_to_input": False}, "inference"),
        "scaled-checkpoint": ("jumprelu", {"jumprelu_bandwidth": 0.5, "jumprelu_init_threshold": 0.1, "l0_coefficient": 0.02,
                                         "normalize_activations": "expected_average_only_in"}, "checkpoint"),
        "scaled": ("standard", {"l1_coefficient": 0.5, "normalize_activations": "expected_average_only_in"}, "inference"),
    }
    for number, (name, (architecture, options, form)) in enumerate(cases.items()):
        torch.manual_seed(number)
        sae_class, config_class = get_sae_training_class(architecture)
        sae = sae_class(config_class(d_in=D, d_sae=K, device="cpu", **options))
        sae.cfg.metadata.hook_name, sae.cfg.metadata.model_name = f"blocks.{number}.hook_resid_post", "made-up"

        def batches(seed=number):
            while True:
                seed += 1000
                yield rows(128, seed)

        config = SAETrainerConfig(total_training_samples=128 * 300, train_batch_size_samples=128, lr=3e-3, lr_end=3e-4,
                                  n_batches_for_norm_estimate=20, n_checkpoints=1,
                                  checkpoint_path=tempfile.mkdtemp(), logger=LoggingConfig(log_to_wandb=False))
        trainer = SAETrainer(config, sae, batches())
        trainer.fit()
        folder, x = out / name, rows(N, 7)
        if form == "checkpoint":  # from the middle of training, when the scale is not yet in the weights
            folder.mkdir()
            source, = Path(config.checkpoint_path).iterdir()
            for file in ("cfg.json", "sae_weights.safetensors", "activation_scaler.json"):
                shutil.copy(source / file, folder)
            scale = json.loads((folder / "activation_scaler.json").read_text())["scaling_factor"]
            half = sae_class.load_from_disk(folder)
            z = half.encode(x * scale)
            keep(folder, x, z, half.decode(z) / scale)
        elif form == "training":
            sae.save_model(folder)
            z = threshold_codes(sae, x) if architecture == "batchtopk" else sae.encode(x)
            keep(folder, x, z, sae.decode(z))
        else:
            from sae_lens import SAE

            sae.save_inference_model(folder)
            again = SAE.load_from_disk(folder)
            z = again.encode(x)
            keep(folder, x, z, again.decode(z))


def threshold_codes(sae, x):
    """What SAELens makes of a BatchTopK training form when it saves it for inference: a threshold on codes in decoder norms."""
    h = ((x - sae.b_dec) @ sae.W_enc + sae.b_enc) * sae.W_dec.norm(dim=-1)
    return torch.where(h > sae.topk_threshold, h, 0.0)


def dictionary_learning():
    """Random dictionaries of the library's classes; ae.safetensors holds the state dict that it would pickle."""
    base, top, batch, nested = bare("dictionary_learning", "dictionary", "trainers.top_k", "trainers.batch_top_k",
                                    "trainers.matryoshka_batch_top_k")
    out = fresh("dictionary_learning", "dictionary-learning")
    makers = {"AutoEncoder": lambda: base.AutoEncoder(D, K), "AutoEncoderNew": lambda: base.AutoEncoderNew(D, K),
              "GatedAutoEncoder": lambda: base.GatedAutoEncoder(D, K),
              "JumpReluAutoEncoder": lambda: base.JumpReluAutoEncoder(D, K),
              "AutoEncoderTopK": lambda: top.AutoEncoderTopK(D, K, 5), "BatchTopKSAE": lambda: batch.BatchTopKSAE(D, K, 5),
              "MatryoshkaBatchTopKSAE": lambda: nested.MatryoshkaBatchTopKSAE(D, K, 5, [16, 48])}
    for number, (name, maker) in enumerate(makers.items()):
        torch.manual_seed(number)
        ae = maker()
        randomise(ae, 100 * number)
        with torch.no_grad():
            if name == "JumpReluAutoEncoder":
                ae.threshold.copy_(draw(K, seed=5).abs())
            elif "TopK" in name:
                ae.threshold.fill_(1.25)
        folder, x = out / name, rows(N, 7) / 4
        folder.mkdir()
        z = ae.encode(x)
        keep(folder, x, z, ae.decode(z))
        save_file({k: v.contiguous() for k, v in ae.state_dict().items()}, folder / "ae.safetensors")
        trainer = {"trainer_class": f"{name}Trainer", "dict_class": name, "activation_dim": D, "dict_size": K, "lr": 1e-3,
                   "steps": 100, "seed": 0, "layer": number, "lm_name": "made-up", "wandb_name": name,
                   "submodule_name": f"resid_post_layer_{number}", **({"k": 5} if "TopK" in name else {})}
        buffer = {"d_submodule": D, "io": "out", "n_ctxs": 10, "ctx_len": 128, "refresh_batch_size": 8, "out_batch_size": 64}
        (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": buffer}, indent=4))


def sparsify():
    """A random sparse coder, saved by the library."""
    config, coder = bare("sparsify", "config", "sparse_coder")
    out = fresh("sparsify", "eai-sparsify")
    cases = {"layers.10": {"num_latents": K}, "layers.3.mlp": {"expansion_factor": K // D}}
    for number, (name, options) in enumerate(cases.items()):
        sae = coder.SparseCoder(D, config.SparseCoderConfig(k=5, **options))
        randomise(sae, 10 * number)
        sae.set_decoder_norm_to_unit_norm()
        folder, x = out / name, rows(N, 7) / 4
        sae.save_to_disk(folder)
        found = sae.encode(x)
        codes = torch.zeros(N, K).scatter_(1, found.top_indices, found.top_acts)
        keep(folder, x, codes, sae.decode(found.top_acts, found.top_indices))


def llamascopium():
    """Random sparse autoencoders, saved by the library."""
    bare("llamascopium")
    sae_module, = bare("llamascopium.models", "sae")
    SAEConfig, SparseAutoEncoder = sae_module.SAEConfig, sae_module.SparseAutoEncoder
    out = fresh("llamascopium", "llamascopium")
    cases = {"relu": {}, "jumprelu": {}, "jumprelu-norm": {"sparsity_include_decoder_norm": False}, "topk": {"top_k": 5},
             "inference": {"norm_activation": "inference"}}
    for number, (name, options) in enumerate(cases.items()):
        kind = name.partition("-")[0].replace("inference", "jumprelu")
        hook = f"blocks.{number}.hook_mlp_out"
        sae = SparseAutoEncoder(SAEConfig(d_model=D, expansion_factor=K / D, act_fn=kind, hook_point_in=hook, hook_point_out=hook,
                                          **options))
        randomise(sae, 10 * number)
        sae.set_dataset_average_activation_norm({hook: 10.5})
        folder, x = out / name, rows(N, 7)
        sae.save_pretrained(folder)
        sae.cfg.save_hyperparameters(folder)
        scale = 1.0 if name == "inference" else math.sqrt(D) / 10.5
        z = sae.encode(x * scale)
        keep(folder, x, z, sae.decode(z) / scale)


if __name__ == "__main__":
    with contextlib.suppress(IndexError):
        {f.__name__: f for f in (saelens, dictionary_learning, sparsify, llamascopium)}[sys.argv[1]]()
