"""The adapter with images, for every family, against Transformers' own forward."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from reprbasis_lvlm.config import LvlmConfig
from reprbasis_lvlm.model import LvlmAdapter
from reprbasis_lvlm.tiny import checkpoint
from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer
from transformers.models.idefics3.processing_idefics3 import Idefics3Processor
from transformers.models.llava.processing_llava import LlavaProcessor

from reprbasis.errors import DataError, UserError
from reprbasis.interfaces.model import Replace, Sampling, Start
from reprbasis.interfaces.tokens import Example, Message, TokenBatch
from reprbasis.sites import Site
from reprbasis.testing.contracts.model import Add, Same

FAMILIES = ("llava", "llava-qwen3", "qwen2-vl", "qwen2.5-vl", "qwen3-vl", "idefics3", "smolvlm")
IMAGES = tuple(np.random.default_rng(i).integers(0, 255, size, dtype=np.uint8)
               for i, size in enumerate([(64, 48, 3), (32, 32, 3), (48, 64, 3)]))


def ask(*images, text="What is the capital of France?", key=""):
    messages = (Message("user", text, images=tuple(range(len(images)))), Message("assistant", "A store."))
    return Example(messages=messages, images=images, key=key)


EXAMPLES = (ask(IMAGES[0]), Example(text="Mary and John went"), ask(IMAGES[1], IMAGES[2], text="Which one?"),
            ask(text="No image?"))


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def model(folder):
    return LvlmAdapter(LvlmConfig(checkpoint=str(folder)))


def close(a, b, rtol=1e-5):
    return float((a - b).abs().max()) <= rtol * max(1.0, float(b.abs().max()))


def sites(model):
    return [*model.info.vision, *model.info.sites]


def theirs(model, folder, batch, **options):
    """Transformers' own forward of a batch with one sequence."""
    network = AutoModelForImageTextToText.from_pretrained(folder, attn_implementation="eager").eval()
    inputs = {k: v for k, v in batch.extra.items() if k in ("pixel_values", "image_grid_thw", "pixel_attention_mask")}
    if "qwen" in model.info.family:
        inputs["mm_token_type_ids"] = batch.flag("image").int()
    if model.kind.reader == "tiles":
        inputs = {k: v[None] for k, v in inputs.items()}
    with torch.no_grad():
        return network(batch.ids, **inputs, **options)


def test_sites_and_logits_are_transformers_own(model, folder):
    info = model.info
    for example in (EXAMPLES[0], EXAMPLES[2]):
        batch = model.batch([example])
        mine = model.forward(batch, capture=sites(model))
        reference = theirs(model, folder, batch, output_hidden_states=True)
        assert close(mine.logits, reference.logits)
        expected = [Site("embed"), *(Site("resid", i) for i in range(info.n_layers - 1)), Site("final")]
        deep = Site("vision.deepstack", 0) in info.vision
        for site, value in zip(expected, reference.hidden_states, strict=True):
            # Transformers collects what blocks give, before deep features join
            at = ~batch.flag("image")[0] if deep and site.name == "resid" else slice(None)
            assert close(mine[site][0, at], value[0, at]), site


def test_tokens_are_those_of_the_processor(model, folder):
    """The ids of a prompt with two images equal those of Transformers' processor, where one exists without torchvision."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    images = model.reader.processor
    if model.kind.reader == "frames":
        strategy = model.hf_config.vision_feature_select_strategy
        own = LlavaProcessor(images, tokenizer, patch_size=4, vision_feature_select_strategy=strategy, image_token="<image>",
                             num_additional_image_tokens=int(strategy == "default"), chat_template=tokenizer.chat_template)
    elif model.kind.reader == "tiles":
        own = Idefics3Processor(images, tokenizer, image_seq_len=4, chat_template=tokenizer.chat_template)
    else:
        pytest.skip("Qwen's processors need torchvision; the forward is compared with Transformers' in the other tests")
    example = EXAMPLES[2]
    parts = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": example.messages[0].content}]
    turns = [{"role": "user", "content": parts},
             {"role": "assistant", "content": [{"type": "text", "text": example.messages[1].content}]}]
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    found = own(text=text, images=[list(example.images)], return_tensors="pt")
    [mine] = model.tokenize([example])
    assert mine.ids.tolist() == found["input_ids"][0].tolist()
    assert torch.equal(mine.extra["pixel_values"], found["pixel_values"].view(mine.extra["pixel_values"].shape))


def test_image_tokens_are_flagged_and_the_rest_spells_the_text(model):
    for found, example in zip(model.tokenize(EXAMPLES), EXAMPLES, strict=True):
        image, special = found.flags["image"], found.flags["special"]
        assert not bool((image & special).any())
        assert int(image.sum()) == int(found.extra["image_grid"].prod(1).sum()) if example.images else not bool(image.any())
        said = model.tokenizer.decode(found.ids[~special & ~image])
        assert said == (example.text or "".join(m.content for m in example.messages))


def test_a_placeholder_in_a_message_is_text(model):
    quoted = model.tokenizer.convert_ids_to_tokens(model.reader.token)
    [found] = model.tokenize([ask(IMAGES[1], text=f"Say {quoted}")])
    assert int(found.flags["image"].sum()) == int(found.extra["image_grid"].prod(1).sum())
    assert int((found.ids == model.reader.token).sum()) == int(found.flags["image"].sum()) + 1
    assert bool(model.forward(TokenBatch.pad([found])).logits.isfinite().all())


def test_capture_and_identity_edits_change_nothing(model):
    batch = model.batch(EXAMPLES)
    plain = model.forward(batch).logits
    seen = model.forward(batch, capture=sites(model))
    assert torch.equal(seen.logits, plain)
    assert {s: x.shape[-1] for s, x in seen.sites.items()} == {**model.info.vision, **model.info.widths}
    assert torch.equal(model.forward(batch, edits=[Same(s) for s in sites(model)]).logits, plain)


def test_padding_packing_and_neighbours_do_not_matter(model):
    sequences, at = model.tokenize(EXAMPLES), [*model.info.sites]
    left, right = (model.forward(TokenBatch.pad(sequences, side=side), capture=at) for side in ("left", "right"))
    [packed] = TokenBatch.pack(sequences, length=sum(map(len, sequences)), rows=1)
    together = model.forward(packed, capture=at)
    for index, sequence in enumerate(sequences):
        alone = model.forward(TokenBatch.pad([sequence]), capture=at)
        for site in at:
            assert close(left[site][index][left.batch.mask[index]], alone[site][0]), site
            assert close(right[site][index][right.batch.mask[index]], alone[site][0]), site
            assert close(together[site][packed.segments == index], alone[site][0]), site


def test_rows_taken_from_a_batch_keep_their_images(model):
    batch = model.batch(EXAMPLES)
    whole = model.forward(batch).logits
    some = model.forward(batch.take(torch.tensor([2, 0, 2])))
    assert close(some.logits, whole[[2, 0, 2]])


def test_a_sequence_cut_within_an_image_begins_as_the_whole(model):
    [whole] = model.tokenize([EXAMPLES[2]])
    size = int(whole.flags["image"].nonzero()[-2]) + 1
    full, cut = (model.forward(TokenBatch.pad([s]), capture=[Site("resid", 1)]) for s in (whole, whole.cut(size)))
    assert close(cut[Site("resid", 1)], full[Site("resid", 1)][:, :size])


def test_vision_sites_have_their_entries_in_rows(model):
    batch = model.batch(EXAMPLES)
    seen = model.forward(batch, capture=sites(model))
    for site in model.info.vision:
        counts = seen.masks[site].sum(1).tolist()
        assert counts[1] == counts[3] == 0, "text has no patches"
        assert counts[0] > 0
        alone = model.forward(model.batch([EXAMPLES[2]]), capture=[site])
        assert close(seen[site][2][seen.masks[site][2]], alone[site][0]), site
    image = batch.flag("image")
    out = Site("vision.out")
    assert close(seen[Site("embed")][image], seen[out][seen.masks[out]])


def test_edits_of_the_vision_side_act_downstream_in_their_row_only(model):
    batch = model.batch(EXAMPLES)
    plain = model.forward(batch, capture=sites(model))
    for site, width in model.info.vision.items():
        here = torch.zeros(len(EXAMPLES), 1, width)
        here[0] = 1
        edited = model.forward(batch, capture=sites(model), edits=[Add(site, here)])
        assert torch.equal(edited[site][1:], plain[site][1:])
        assert torch.equal(edited[site], plain[site] + here * 1.0) or close(edited[site], plain[site] + here)
        assert not torch.equal(edited.logits[0], plain.logits[0]), site
        assert close(edited.logits[1:], plain.logits[1:]), site


def test_patches_stand_in_the_order_of_the_processor(model):
    """Changing one patch of the input changes that entry first of all: windows must not reorder what is shown."""
    if model.kind.reader != "grid":
        pytest.skip("only Qwen2.5 reorders patches")
    [found] = model.tokenize([ask(IMAGES[0])])
    site, changed = Site("vision.resid", 0), 9
    pixels = found.extra["pixel_values"].clone()
    pixels[changed] += 2.0
    before, after = (model.forward(TokenBatch.pad([s]), capture=[site])[site][0] for s in (
        found, replace(found, extra={**found.extra, "pixel_values": pixels})))
    assert int((after - before).norm(dim=-1).argmax()) == changed


def test_the_stream_is_the_sum_of_its_writers(model):
    batch = model.batch(EXAMPLES)
    seen = model.forward(batch, capture=sites(model))
    before = seen[Site("embed")]
    for layer in range(model.info.n_layers):
        total = before + seen[Site("attn_out", layer)] + seen[Site("mlp_out", layer)]
        if (deep := Site("vision.deepstack", layer)) in model.info.vision:
            total = total.clone()
            total[batch.flag("image")] += seen[deep][seen.masks[deep]]
        before = seen[Site("resid", layer)]
        assert close(total[batch.mask], before[batch.mask])


@pytest.mark.parametrize("site", [Site("embed"), Site("resid", 0), Site("resid", 1)])
def test_start_continues_with_images(model, site):
    full = model.forward(model.batch(EXAMPLES), capture=[site])
    assert torch.equal(model.forward(full.batch, start=Start(site, full[site])).logits, full.logits)


def test_gradients_reach_the_vision_side(model):
    batch = model.batch([EXAMPLES[0]])
    result = model.forward(batch, capture=sites(model), grad=True)
    gradients = torch.autograd.grad(result.logits[0, -1, 3], [result[s] for s in sites(model)])
    assert all(bool(g.isfinite().all()) and float(g.abs().max()) > 0 for g in gradients)


def test_stopping_at_the_vision_side_runs_no_block(model):
    site = Site("vision.out")
    result = model.forward(model.batch([EXAMPLES[0]]), capture=[site], stop_at=site)
    assert result.logits is None
    assert float(result[site].abs().max()) > 0


def test_generation_sees_the_image(model, folder):
    """Each token generated is the best by the uncached logits of the whole sequence, in a batch with other prompts."""
    prompts = model.tokenize([replace(e, messages=e.messages[:1], add_prompt=True) if e.messages else e for e in EXAMPLES])
    for prompt, whole in zip(prompts, model.generate(prompts, sampling=Sampling(max_new=5)), strict=True):
        logits = model.forward(TokenBatch.pad([whole])).logits[0, len(prompt) - 1:-1]
        assert close(logits.gather(1, whole.ids[len(prompt):, None])[:, 0], logits.amax(1))
        assert not bool(whole.flags["image"][len(prompt):].any())


def test_contents_tell_images_apart(model):
    first, same, other = model.tokenize([ask(IMAGES[1]), ask(IMAGES[1]), ask(IMAGES[1] // 2)])
    image = first.flags["image"]
    assert torch.equal(first.contents, same.contents)
    assert bool((first.contents[image] != other.contents[image]).all())
    assert torch.equal(first.contents[~image], first.ids[~image])


def test_harvested_activations_keep_the_images(model, tmp_path):
    import reprbasis as rb

    examples = [ask(IMAGES[i % 2] // (1 + i // 2), key=f"k{i}") for i in range(6)]
    acts = rb.harvest(model, examples, sites=["resid.1"], tokens=10_000, held_out=0.34, row_tokens=64, rows=2)
    rb.save(acts, tmp_path / "acts")
    kept = rb.load(tmp_path / "acts")
    for split in ("train", "held-out"):
        for sequence in kept.sequences(split):
            [fresh] = model.tokenize([examples[int(sequence.key[1:])]])
            assert sequence.extra.keys() == fresh.extra.keys()
            assert all(torch.equal(v, fresh.extra[k]) for k, v in sequence.extra.items())
    assert not bool(kept.table.repeats[kept.table.flags["image"]].any()), "different images are no repetition"
    site, [first, *_] = Site("resid", 1), kept.sequences("train")
    stored = kept.read(site, 0, slice(0, len(first))).float()
    assert close(stored, model.forward(TokenBatch.pad([first]), capture=[site])[site][0], 1e-2)
    with pytest.raises(rb.errors.SiteError, match="one entry a patch"):
        rb.harvest(model, examples, sites=["vision.out"], tokens=100)


def test_what_cannot_be_is_said(model):
    with pytest.raises(DataError, match="1 place"):
        model.tokenize([Example(text=model.tokenizer.convert_ids_to_tokens(model.reader.token))])
    with pytest.raises(DataError, match="the example has 1"):
        model.tokenize([Example(messages=(Message("user", "?", images=(1,)),), images=(IMAGES[0],))])
    [found] = model.tokenize([EXAMPLES[0]])
    with pytest.raises(DataError, match="no images"):
        model.forward(TokenBatch.pad([replace(found, extra={})]))
    with pytest.raises(DataError, match="cannot be read"):
        model.tokenize([ask("nowhere.png")])


@pytest.mark.parametrize("name", ["Qwen3VLMoeForConditionalGeneration", "LlavaNextForConditionalGeneration"])
def test_families_that_are_not_in_the_table_are_refused_before_weights_are_read(name, tmp_path):
    kind = {"Qwen3VLMoeForConditionalGeneration": "qwen3_vl_moe", "LlavaNextForConditionalGeneration": "llava_next"}[name]
    config = AutoConfig.for_model(kind)
    config.architectures = [name]
    config.save_pretrained(tmp_path)
    for meet in (LvlmAdapter.describe, LvlmAdapter):
        with pytest.raises(UserError, match=f"is {name}: ") as caught:
            meet(LvlmConfig(checkpoint=str(tmp_path)))
        assert "Qwen3VLForConditionalGeneration" in caught.value.do


def test_replacing_what_the_projector_gives_blinds_the_model(model):
    """With `vision.out` set to zero, two different images give the same logits."""
    out = Site("vision.out")
    one, two = (model.forward(model.batch([ask(i)]), edits=[Replace(out, torch.zeros(1))] + [
        Replace(s, torch.zeros(1)) for s in model.info.vision if s.name == "vision.deepstack"]).logits
        for i in (IMAGES[1], IMAGES[1] // 2))
    assert close(one, two)


def test_no_torchvision_is_needed():
    """In a fresh process where importing it fails."""
    code = """
import sys
sys.modules["torchvision"] = None
import numpy as np
import reprbasis as rb
from reprbasis.interfaces.tokens import Example, Message
model = rb.create("model", "lvlm")
image = np.zeros((48, 48, 3), np.uint8)
image[4:14, 4:14] = (255, 0, 0)
asked = Message("user", "What colour is the square?", images=(0,))
[one] = model.tokenize([Example(messages=(asked,), images=(image,), add_prompt=True)])
[whole] = model.generate([one])
print(model.tokenizer.decode(whole.ids[whole.flags["generated"]]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.startswith("red"), done.stderr
