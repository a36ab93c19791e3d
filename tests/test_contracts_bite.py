"""The conformance suites have teeth: a component with one mistake fails the law that is there for it.

Each case takes what `reprbasis new` writes, puts one mistake in, and runs that law. All run in one fresh interpreter.
"""

import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import pytest

from reprbasis.cli import new

CASES = [  # kind, law, what is right, the mistake
    ("metric", "test_padding_never_counts",
     "logits[torch.arange(len(logits), device=logits.device), batch.last()]", "logits[:, -1]"),
    ("metric", "test_one_number_per_row", ".sum(-1)\n", ".sum(-1).mean()\n"),
    ("metric", "test_rows_do_not_depend_on_each_other", "log_p = last", "log_p = (last - last.mean(0))"),
    ("metric", "test_needs_are_declared", "needs = frozenset()", 'needs = frozenset({"answer"})'),
    ("metric", "test_gradient", "log_p = last.log_softmax", "log_p = last.detach().log_softmax"),
    ("metric", "test_missing_logits_are_refused", 'raise DataError("', 'raise ValueError("'),
    ("scorer", "test_exact_on_a_linear_model", "(z - other_z)", "(other_z - z)"),
    ("scorer", "test_exact_on_a_linear_model",
     "gradient = gradient * item.clean.mask[..., None]", "gradient = gradient.abs()"),
    ("scorer", "test_exact_on_a_linear_model", "(z - other_z)", "z"),
    ("scorer", "test_scores_are_complete", "rest = (gradient * (error - other_error))", "rest = (0 * gradient)"),
    ("scorer", "test_batches_are_weighted_by_their_examples", "n += len(item.clean.ids)", "n += 1"),
    ("scorer", "test_table_covers_every_site",
     "for site, value in totals.items()}", "for site, value in list(totals.items())[1:]}"),
    ("finder", "test_recovers_a_planted_circuit",
     "scores.top(self.config.nodes)", "scores.top(self.config.nodes - 1)"),
    ("finder", "test_the_circuit_carries_the_task", "masks[site][latent] = True", "masks[site][latent - 1] = True"),
    ("finder", "test_masks_have_the_right_shape",
     "torch.zeros(basis.d_dict + 1, dtype=torch.bool)", "torch.zeros(basis.d_dict, dtype=torch.bool)"),
    ("finder", "test_missing_scores_are_said", "if scores is None:", "if scores is None and basis is None:"),
    ("editor", "test_planning_leaves_the_model",
     "written = span", "model.mlp(layer).W_out.mul_(2)\n            written = span"),
    ("editor", "test_the_edit_moves_the_behaviour",
     "(self.config.scale - 1) * written", "(1 - self.config.scale) * written"),
    ("editor", "test_deltas_fit_the_parameters", "deltas[name] =", "deltas[name + '.x'] ="),
    ("editor", "test_planning_is_deterministic", "* written\n", "* written * torch.rand(())\n"),
    ("lens", "test_final_reads_as_the_logits",
     'and site.name != "final":\n            x = out.norm(x)', ':\n            x = 2 * x'),
    ("lens", "test_any_leading_dimensions", "return linear(x", "x = x - x.mean(0)\n        return linear(x"),
    ("lens", "test_reading_can_be_differentiated", "return linear(x", "return linear(x.detach()"),
    ("aligner", "test_recovers_a_planted_map", "x.T @ y)", "x.T @ y).T"),
    ("aligner", "test_recovers_a_planted_map", "mean_b.to(b.dtype)", "0 * mean_b.to(b.dtype)"),
    ("aligner", "test_degenerate_input_is_finite_or_refused", "TINY = 1e-12", "TINY = 0.0"),
    ("aligner", "test_unpaired_input_is_refused", " or len(a) != len(b)", ""),
    ("evaluator", "test_every_number_stands_beside_a_control",
     '(("global", guess), ("shuffled", guess[order]))', '(("global", guess),)'),
    ("evaluator", "test_evaluation_is_deterministic",
     "generator=torch.Generator().manual_seed(inputs.seed)", "generator=None"),
    ("evaluator", "test_every_number_is_finite_and_has_its_n",
     "found.value, found.n", "found.value / 0.0 if site else 0, found.n"),
    ("judge", "test_marks_matter", "p.marked or range(len(p.tokens))", "range(len(p.tokens))"),
    ("judge", "test_one_score_per_passage", "torch.tensor(found, ", "5 * torch.tensor(found, "),
    ("judge", "test_a_planted_word_is_found_in_passages", "p.marked or range(len(p.tokens))", "p.marked"),
    ("codec", "test_read_gives_back_what_was_written", "v.to(dtype) if", "v.to(dtype) * 1.01 if"),
    ("codec", "test_other_folders_are_not_claimed",
     'return (folder / "my-case.json").is_file() and', "return True or"),
    ("codec", "test_damage_is_said",
     "tensors = read_tensors(", "import safetensors.torch\n        tensors = safetensors.torch.load_file("),
    ("step", "test_same_inputs_same_bytes",
     "generator=torch.Generator().manual_seed(context.seed)", "generator=None"),
    ("step", "test_inputs_and_model_are_left_alone",
     "basis.directions(basis.sites[0])", "basis.dictionary.decoder.mul_(2)"),
    ("step", "test_output_is_what_was_declared", "-> Findings:", "-> Findings:\n        return inputs['basis']"),
    ("task", "test_splits_share_no_prompt", '"test": ("plate"', '"test": ("key"'),
    ("task", "test_keys_are_unique_and_splits_share_none", 'key = f"{noun}/{place}/{one}"', 'key = place'),
    ("task", "test_sides_have_equal_length", '"plural": f"The {noun}s', '"plural": f"The many {noun}s'),
    ("task", "test_the_seed_decides_everything", "random.Random(seed).shuffle", "random.shuffle"),
    ("task", "test_roles_are_positions", "(last,)", "(last + 90,)"),
    ("task", "test_answers_are_token_ids", "answer=(answers[one][0],)", "answer=(answers[other][0],)"),
    ("learner", "test_start_is_deterministic", ", generator=generator)", ")"),
    ("learner", "test_loss_ignores_rows_of_weight_zero",
     "share = rows.weight / rows.weight.sum()", "share = torch.ones(len(rows)) / len(rows)"),
    ("corpus", "test_keys_are_unique", "key=str(number)", 'key="x"'),
    ("reporter", "test_shows_a_run_with_a_damaged_artifact",
     "except ReprBasisError as error", "except KeyError as error"),
]


@pytest.fixture(scope="module")
def failed(tmp_path_factory):
    """Indices of the cases whose law failed."""
    root = tmp_path_factory.mktemp("cases")
    paths, wanted = [], []
    for index, (kind, law, right, wrong) in enumerate(CASES):
        folder = new.create(kind, "my-case", root / str(index))
        package = folder / "reprbasis_my_case"
        code = package / f"{kind}.py"
        text = code.read_text()
        assert right in text, f"case {index}: '{right}' is not in the template of kind {kind}"
        code.write_text(text.replace(right, wrong, 1))
        wanted.append(f"{_own_package(folder, package, index)}::{law}")
        paths.append(folder)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--import-mode=importlib", "-p", "no:cacheprovider", "--junitxml",
         str(root / "report.xml"), *wanted],
        cwd=root, env=environment, capture_output=True, text=True, check=False, timeout=500)
    out, seen = set(), set()
    for case in ElementTree.parse(root / "report.xml").iter("testcase"):
        index = int(re.search(r"TestCase(\d+)", case.get("classname"))[1])
        seen.add(index)
        assert not any(child.tag == "error" for child in case), (index, [child.text for child in case])
        if any(child.tag == "failure" for child in case):
            out.add(index)
    assert seen == set(range(len(CASES))), done.stdout + done.stderr
    return out


def _own_package(folder, package, index):
    """Make each case a component of its own, `case-N` in the package `case_N`; gives the node id of its suite."""
    for path in (*package.glob("*.py"), folder / "tests" / "test_contract.py"):
        text = path.read_text().replace("reprbasis_my_case", f"case_{index}").replace("MyCase", f"Case{index}")
        path.write_text(re.sub(r'name(, \w+)* = "my-case"', lambda m: m[0].replace("my-case", f"case-{index}"), text)
                        .replace('name="my-case"', f'name="case-{index}"'))
    package.rename(folder / f"case_{index}")
    info = folder / f"case_{index}-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: case-{index}\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text(f"[reprbasis]\ncase-{index} = case_{index}.plugin\n")
    return f"{folder / 'tests' / 'test_contract.py'}::TestCase{index}"


@pytest.mark.parametrize("index", range(len(CASES)), ids=[f"{c[0]}-{c[1][5:]}-{i}" for i, c in enumerate(CASES)])
def test_the_law_catches_the_mistake(failed, index):
    kind, law, right, wrong = CASES[index]
    assert index in failed, f"{kind}: {law} passes although '{right}' became '{wrong}'"
