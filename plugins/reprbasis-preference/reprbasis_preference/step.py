"""Step `prefer`: rank heads and MLPs on a task."""

from reprbasis.interfaces.artifact import Artifact
from reprbasis.interfaces.evaluator import Figure, Findings, Measurement
from reprbasis.interfaces.step import Step, StepContext
from reprbasis.runtime.batches import batches

from .config import PreferConfig
from .context import rank
from .measures import largest_by_chance


class PreferStep(Step[PreferConfig]):
    """In-context, contrastive preference of every component (mode `ctx`)."""

    def run(self, context: StepContext, **inputs: Artifact) -> Findings:
        """Findings: the values of `Ranking`, and the components of largest |gain| as measurements."""
        model, c = context.model, self.config
        found = batches(model, context.registry.build(c.task), split=c.split, n=c.prompts, batch=c.batch, seed=context.seed,
                        keep=c.keep)
        ranking = rank(model, found, null=c.null, seed=context.seed)
        rows = [Measurement(name, float(ranking.values[name][at]), ranking.n, condition=ranking.name(*at),
                            site=f"{'mlp' if ranking.name(*at).startswith('mlp') else 'attn'}_out.{at[0]}",
                            unit={"gain": "stream", "dla": "logits"}.get(name, ""))
                for at in ranking.top(c.shown) for name in ("gain", "p", "p_sd", "rel", "dla", "z", "q")]
        heads = model.info.n_heads
        figure = Figure("heatmap", "What components write for the task", "Part along (answer - wrong answer) of what each head "
                        "and MLP adds at the last token, mean over prompts; negative: against the answer.",
                        {"gain": ranking.values["gain"][:, :heads + 1].tolist()}, [*map(str, range(heads)), "mlp"],
                        [str(i) for i in range(model.info.n_layers)], x_label="head", y_label="layer")
        parts = ranking.values["p"].numel()
        chance = largest_by_chance(parts, model.info.d_model)
        note = (f"{ranking.n} prompts of {c.task.dump()}, split {c.split}; z and q against the same prompts with random answer "
                f"tokens. The largest of {parts} P is about {chance:.2f} by chance. A high preference is no proof of an effect: "
                "confirm by ablation.")
        return Findings(rows, [figure], notes=[note], values=dict(ranking.values))
