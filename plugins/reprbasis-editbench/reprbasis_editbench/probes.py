"""What a benchmark asks for and looks at.

Shapes: T tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from reprbasis.interfaces.editor import EditRequest
from reprbasis.interfaces.model import ModelAdapter
from reprbasis.interfaces.tokens import Example, TokenBatch, TokenSequence
from reprbasis.runtime.batches import Batches


@dataclass(frozen=True)
class Case:
    """One edit that is asked for, and what to look at afterwards.

    Args:
        name: of the case.
        request: what the editor is given.
        aim: `indifference`: answer and wrong answer shall be equally likely (a preference is forgotten); `replace`: the wrong
            answer shall be given.
        fitted: the very prompts of the request.
        unseen: name -> prompts with the same behaviour that the editor was not given.
        stay: name -> prompts whose likeliest token must stay.
        neutral: texts on which the model must stay; none of them is in `request.keep`.
    """

    name: str
    request: EditRequest
    aim: str
    fitted: Batches
    unseen: Mapping[str, Batches]
    stay: Mapping[str, Batches] = field(default_factory=dict)
    neutral: Sequence[Example] = ()


@torch.no_grad()
def token_log_probs(model: ModelAdapter, sequences: Sequence[TokenSequence], *, together: int = 8) -> list[Tensor]:
    """Of each sequence: [T - 1] log-probability of every token after the first."""
    out: list[Tensor] = []
    for start in range(0, len(sequences), together):
        chosen = sequences[start:start + together]
        batch = TokenBatch.pad(chosen, pad_id=model.pad_id).to(model.device)
        log_p = model.forward(batch).logits[:, :-1].float().log_softmax(-1)
        taken = log_p.gather(2, batch.ids[:, 1:, None])[..., 0].cpu()
        out += [taken[i, :len(s) - 1] for i, s in enumerate(chosen)]
    return out


def induction_nll(model: ModelAdapter, sequences: Sequence[TokenSequence]) -> tuple[Tensor, Tensor]:
    """Loss of each token of the second halves but its first, and the sequence it is from: [tokens], [tokens]."""
    found = [lp[len(s) // 2:] for lp, s in zip(token_log_probs(model, sequences), sequences, strict=True)]
    return -torch.cat(found).double(), torch.repeat_interleave(torch.arange(len(found)), torch.tensor([len(f) for f in found]))
