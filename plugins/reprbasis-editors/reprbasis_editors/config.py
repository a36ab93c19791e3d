"""Options of the editors."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from reprbasis import ComponentConfig

ComponentName = Annotated[str, StringConstraints(pattern=r"^(head\.\d+\.\d+|(mlp|values)\.\d+)$")]


class EraseConfig(ComponentConfig):
    """Options of `erase`."""

    latents: tuple[int, ...] = ()
    """Latents whose directions are erased; none: the directions from wrong answers to answers of the request."""
    layers: tuple[int, ...] | None = None
    """Layers that may no longer write along them; null: all."""
    writers: Literal["both", "attention", "mlp"] = "both"
    """Which of a layer's writers. The embedding is never changed."""
    strength: float = Field(1.0, gt=0)
    """Share of what is written along the directions that is taken away; 1: all of it."""


class KeepConfig(ComponentConfig):
    """What the texts to keep allow."""

    budget: float = Field(0.05, gt=0)
    """Most that the edit may change the model on the texts to keep: mean KL divergence in nats a token."""
    keep_tokens: int = Field(64, ge=1)
    """Tokens of each text to keep that are used."""
    budget_tokens: int = Field(256, ge=1)
    """The budget is checked on about so many tokens of the texts to keep, evenly from all of them."""


class SearchConfig(KeepConfig):
    """How far an edit goes: found by forward passes."""

    goal: float | None = 0.0
    """Mean logit difference (answer minus wrong answer) aimed at for the prompts to change; null: `strength` as it stands."""
    rivals: Literal["answers", "all"] = "answers"
    """What the wrong answer is compared with for that: the answers, or whatever other token is likeliest (with a goal below 0
    the wrong answer is then what the model says; what pushes towards it then pushes past every other token, see `ahead`)."""
    strength: float = Field(1.0, gt=0)
    """First strength tried. It is raised, at most doubled each time, then narrowed down, until the goal is met."""
    tries: int = Field(10, ge=1)
    """Trials at most, of a forward each over the prompts to change and the texts to keep."""
    said_twice: int = Field(0, ge=0)
    """So many rows of 16 random tokens, said twice, are among the texts to keep: what heads that copy (induction) read and texts
    hardly hold."""
    induction: float | None = Field(None, gt=0)
    """Most that the loss on the second halves of these rows may rise, in nats a token; null: any."""
    folds: int = Field(1, ge=1)
    """The strength is searched on prompts left out of the fit, in so many turns; prompts of one layout (template) stay together.
    1, or where there is one batch alone: on the prompts fitted."""


class KeyConfig(SearchConfig):
    """Options of editors that read keys."""

    at: str = "answer"
    """Where the component's input is read: `answer`, the token whose logits give it, or a role of the task (its last token)."""
    contexts: int = Field(0, ge=0)
    """With a role: its tokens after the beginnings of so many texts to keep are further places where the edit shall hold."""
    near: int = Field(0, ge=0)
    """So many tokens of the texts to keep, those whose keys are most like the keys to change (neighbours in meaning), are held
    each for itself and not only in the mean over all tokens."""
    neighbours: float | None = Field(None, gt=0, le=1)
    """Most of the `peers`, as a share, after whom another token may become the likeliest; null: any."""
    peers: int = Field(0, ge=0)
    """So many other words are put in the subject's place (role `at`, or `subject` with `at: answer`) and what is read there is
    held as well: words that the model itself finds likely there or alike. What an edit of one subject spoils first."""
    near_weight: float = Field(1.0, gt=0)
    """Weight of each key that is held for itself."""


class LocalConfig(KeyConfig):
    """Options of editors that change what components write."""

    components: tuple[ComponentName, ...] = ()
    """Which heads (`head.23.3`), MLPs (`mlp.20`) and value matrices of all heads of a layer (`values.23`) are edited; none:
    chosen by what they write along the contrast, in context, and confirmed by ablation (values: see `readers`)."""
    top: int = Field(6, ge=1)
    """How many are chosen."""
    among: Literal["heads", "mlps", "both", "values"] = "both"
    """What they are chosen among."""
    aim: Literal["forget", "push"] = "forget"
    """`forget`: strength 1 takes away what the component writes along the contrast, and no more; `push`: strength 1 writes one
    unit against it."""


class RidgeConfig(LocalConfig):
    """Options of `ridge`."""

    keep_weight: float = Field(1.0, ge=0)
    """Weight of the mean square change on the texts to keep, against the sum over the prompts to change."""
    ridge: float = Field(1e-3, gt=0)
    """Weight of the change's own size, relative to the mean square of what the component reads."""


class FactConfig(RidgeConfig):
    """Options of `fact`: those of `ridge`, set for facts."""

    among: Literal["heads", "mlps", "both", "values"] = "values"
    """As in `ridge`."""
    top: int = Field(1, ge=1)
    """How many are chosen."""
    at: str = "subject"
    """Where the component's input is read. The subject is found where nobody marked it (see `with_subject`)."""
    aim: Literal["forget", "push"] = "push"
    """As in `ridge`."""
    goal: float | None = -2.0
    """Mean logit difference (answer minus wrong answer) aimed at for the prompts to change; null: `strength` as it stands."""
    rivals: Literal["answers", "all"] = "all"
    """As in `ridge`."""
    strength: float = Field(60.0, gt=0)
    """First strength tried. It is raised, at most doubled each time, then narrowed down, until the goal is met."""
    near: int = Field(16, ge=0)
    """So many tokens of the texts to keep, those most like the keys to change, are held each for itself."""
    contexts: int = Field(8, ge=0)
    """The subject after the beginnings of so many texts to keep are further places where the edit shall hold."""
    peers: int = Field(32, ge=0)
    """So many other words are put in the subject's place, and what is read there is held as well."""
    neighbours: float | None = Field(0.5, gt=0, le=1)
    """Most of them, as a share, after whom another token may become the likeliest; null: any."""
    said_twice: int = Field(6, ge=0)
    """So many rows of 16 random tokens, said twice, are among the texts to keep: what heads that copy read, and texts lack."""
    ridge: float = Field(1.0, gt=0)
    """Weight of the change's own size, relative to the mean square of what the component reads: what the texts say nothing about
    changes little."""


class NullSpaceConfig(LocalConfig):
    """Options of `null-space`."""

    share: float = Field(0.02, gt=0, lt=1)
    """The edit may use the directions that together hold at most this share of what the component reads in the texts to keep."""
    ridge: float = Field(1e-6, gt=0)
    """Weight of the change's own size, relative to the mean square of what the component reads."""


class OnlineConfig(KeyConfig):
    """Options of `online`."""

    component: ComponentName | None = None
    """The one head, MLP or value matrix that holds all edits; null: the one that writes most along the first edit's contrast."""
    keep_weight: float = Field(1.0, ge=0)
    """Weight of the mean square change on the texts to keep."""
    ridge: float = Field(1e-3, gt=0)
    """Weight of the change's own size, relative to the mean square of what the component reads."""
    conflict: float = Field(0.05, gt=0, lt=1)
    """An edit is refused if earlier edits left less than this share of its key free."""


HeadName = Annotated[str, StringConstraints(pattern=r"^head\.\d+\.\d+$")]


class RoutingConfig(SearchConfig):
    """Options of `routing`."""

    heads: tuple[HeadName, ...] = ()
    """Which heads look elsewhere; none: those whose output at the answer's position, exchanged for that in the corrupted prompt,
    costs most of the logit difference; as many as bring it to the goal when they are silent."""
    top: int = Field(6, ge=1)
    """How many are chosen at most."""
    layers: int = Field(6, ge=1)
    """How many layers are looked into for them, those whose attention matters most."""
    strength: float = Field(8.0, gt=0)
    """First strength tried: nats by which the log-odds of looking at the first token rise."""
    budget: float = Field(0.03, gt=0)
    """Most that the edit may change the model on the texts to keep: mean KL divergence in nats a token."""
    keep_tokens: int = Field(32, ge=1)
    """Tokens of each text to keep that are used."""
    said_twice: int = Field(6, ge=0)
    """So many rows of 16 random tokens, said twice, are among the texts to keep: what heads that copy are needed for besides."""
    induction: float | None = Field(0.2, gt=0)
    """Most that the loss on the second halves of these rows may rise, in nats a token; null: any."""
    keep_weight: float = Field(1.0, ge=0)
    """Weight of the mean square change on the texts to keep, against the mean over the prompts to change."""
    ridge: float = Field(3.0, gt=0)
    """Weight of the change's own size, relative to the mean square of what the queries read: texts of a few hundred tokens say
    little about most directions, and a small change is the safest guess there."""


class ComponentSGDConfig(LocalConfig):
    """Options of `component-sgd`."""

    steps: int = Field(200, ge=1)
    """Steps of Adam."""
    lr: float = Field(0.02, gt=0)
    """Its rate, for keys and values of unit size."""
    rank: int | None = Field(None, ge=1)
    """The change is a product of two matrices of this rank; null: any change."""
    keep_weight: float = Field(1.0, ge=0)
    """Weight of the mean square change on the texts to keep, against the mean over the prompts to change."""
    seed: int = 0
    """Of the first of the two matrices."""


class FeatureRowsConfig(SearchConfig):
    """Options of `feature-rows`."""

    latents: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Which latents; none: those with the largest part along (answer - wrong answer) at the answer."""
    top: int = Field(4, ge=1)
    """How many are chosen."""
    layers: tuple[int, ...] | None = None
    """Whose MLPs; null: all that the basis covers (`mlp_out.L`, else `resid.L`)."""
    threshold: float = Field(0.5, gt=0, le=1)
    """A neuron is changed if its part along the latent's direction is at least this share of the largest one."""


class SiteConfig(SearchConfig):
    """Options of editors of activations."""

    site: str | None = None
    """Where values are shifted; null: `resid.L` after three quarters of the blocks."""


class SteerConfig(SiteConfig):
    """Options of `steer`."""

    latents: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Latents that strength 1 takes away, by what they are on average at the answer; none: strength 1 adds the mean difference
    between corrupted and clean prompts."""


class CodebookConfig(SiteConfig):
    """Options of `codebook`."""

    at: str = "answer"
    """Which token of a prompt is its key: `answer`, the token whose logits give it, or a role of the task (its last token)."""
    radius: float = Field(0.5, gt=0, lt=1)
    """How near a value must come, as a share of the distance to the nearest token of the texts to keep."""
    strength: float = Field(0.1, gt=0)
    """First strength tried, in lengths of the key."""


class WithdrawConfig(KeepConfig):
    """Options of `withdraw`."""

    layer: int | None = Field(None, ge=0)
    """Whose MLP is edited; null: the last but two. In the last itself the effect on the answers is known exactly, but other texts
    suffer more."""
    goal: float | None = Field(None, lt=0)
    """Log-probability that each answer token shall have at most; null: the one that the model itself gives it after the last
    `context` tokens alone, which remind it of nothing."""
    context: int = Field(3, ge=1)
    """See `goal`."""
    rounds: int = Field(6, ge=1)
    """Times that is asked for what is still missing, at most."""
    keep_weight: float = Field(1.0, ge=0)
    """Weight of the mean square change on the texts to keep, against the sum over the places."""
    ridge: float = Field(0.1, gt=0)
    """Weight of the change's own size, relative to the mean square of what the component reads."""


class AsIfConfig(KeepConfig):
    """Options of `as-if`."""

    layers: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(None, min_length=1)
    """Whose MLPs are edited; null: all."""
    strength: float = Field(1.0, gt=0)
    """1: all of the way, as far as the texts to keep allow."""
    keep_weight: float = Field(1.0, ge=0)
    """Weight of the mean square change on the texts to keep, against the sum over the places."""
    ridge: float = Field(1e-3, gt=0)
    """Weight of the change's own size, relative to the mean square of what the component reads."""
