"""Controls of a basis that was trained here, and of one that comes from elsewhere and does not know how it was trained."""

from dataclasses import replace

import torch

from reprbasis.interfaces.evaluator import EvaluationInputs
from reprbasis.kits.controls import training_settings, untrained
from reprbasis.testing.toys import toy_activations, toy_model, trained_basis


def inputs_of(tmp_path, seed=3):
    model = toy_model()
    activations = toy_activations(model, tmp_path)
    return EvaluationInputs(model, trained_basis(activations), activations, seed=seed)


def test_a_trained_basis_keeps_its_own_settings(tmp_path):
    inputs = inputs_of(tmp_path)
    assert training_settings(inputs) == inputs.basis.details["training"]
    one, two = untrained(inputs), untrained(replace(inputs, seed=9))
    assert torch.equal(one.dictionary.encoder, two.dictionary.encoder)


def test_an_imported_basis_has_controls_too(tmp_path):
    inputs = inputs_of(tmp_path)
    inputs.basis.details.clear()
    one, same, other = untrained(inputs), untrained(inputs), untrained(replace(inputs, seed=9))
    assert one.sites == inputs.basis.sites
    assert torch.equal(one.dictionary.encoder, same.dictionary.encoder)
    assert not torch.equal(one.dictionary.encoder, other.dictionary.encoder)
    assert not torch.equal(one.dictionary.encoder, inputs.basis.dictionary.encoder)
