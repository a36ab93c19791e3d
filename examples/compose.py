"""The quickstart in Python, small: a global dictionary over five sites of the default model, and what one latent does.

python examples/compose.py [OUTPUT_FOLDER]
"""

import sys
from pathlib import Path

import torch

import reprbasis as rb
from reprbasis.interfaces.metric import Targets
from reprbasis.interfaces.tokens import Example, Message

model = rb.create("model", "llama", checkpoint="smollm2-135m-instruct")
corpus = rb.create("corpus", "chat", limit=120)
acts = rb.harvest(model, corpus, sites=["resid.8:24:5", "final"], tokens=6_000)
basis = rb.fit(rb.create("learner", "jumprelu", width=2048, target_l0=30), acts, rows=300_000, batch=1024, lr=1e-3)
print(basis, f"FVU on the last batches: {basis.details['history'][-1]['fvu']:.2f}")

batch = model.batch([Example(messages=(Message("user", "What is the capital of France?"),), add_prompt=True)])
plain = model.forward(batch, capture=basis.sites, logits="last")
print("the model says:", repr(model.tokenizer.decode(plain.logits[0, -1].argmax())))

# the identity splice changes nothing; the reconstruction alone changes something
kl = rb.create("metric", "kl")
full = model.forward(batch)
same = model.forward(batch, edits=basis.splice())
assert torch.equal(same.logits, full.logits)
for site in basis.sites:
    bare = model.forward(batch, edits=basis.splice([site], error="none"))
    print(f"{site}: KL {float(kl(bare, batch, Targets(reference=full.logits))):.3f} nats when only the dictionary's part is kept")

# the strongest latent at the last token, in words: which tokens its direction promotes
site = rb.Site("final")
codes, _ = basis.states(plain)[site]
latent = int(codes[0, -1].argmax())
promoted = (basis.directions(site)[latent] @ model.unembedding().weight.T).topk(5).indices
print(f"strongest latent at {site}: {latent}, promotes", [model.tokenizer.decode(int(i)) for i in promoted])

if len(sys.argv) > 1:
    print("saved to", rb.save(basis, Path(sys.argv[1])))
