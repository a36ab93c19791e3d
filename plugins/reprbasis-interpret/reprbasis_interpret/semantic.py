"""Judge `semantic`: how near a token's embedding lies to those of the marked tokens.

Embeddings are the rows of the unembedding, centred over the vocabulary: static, so that context counts for nothing, and those
of the model that is judged, so that what the judge finds alike is what the model writes alike.

Shapes: V vocabulary, D width.
"""

from torch.nn.functional import normalize

from .config import SemanticConfig
from .tokenwise import TokenJudge

KEPT = 5
"""Tokens named in an explanation."""


class Semantic(TokenJudge):
    """See the module."""

    config: SemanticConfig

    @property
    def sharpness(self):
        """Factor on cosines."""
        return self.config.sharpness

    def learn(self, yes, no, model):
        """Mean embedding of the marked tokens minus that of the others; in words: the vocabulary's nearest tokens."""
        table = self._table(model)
        have, lack = (table[[p.ids[i] for p, i in some]].mean(0) if some else table[:0].sum(0) for some in (yes, no))
        towards = normalize(have - lack, dim=0)
        nearest = (table @ towards).topk(min(KEPT, len(table))).indices.tolist()
        return "tokens like " + ", ".join(repr(model.tokenizer.decode([i])) for i in nearest), {"towards": towards}

    def value(self, details, passage, place, model):
        """Cosine."""
        return float(self._table(model)[passage.ids[place]] @ details["towards"])

    def _table(self, model):
        """[V, D] centred unit rows, made once for a model."""
        if getattr(self, "_of", None) is not model:
            weight = model.unembedding().weight.detach().float()
            self._of, self._rows = model, normalize(weight - weight.mean(0), dim=1)
        return self._rows
