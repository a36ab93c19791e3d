"""Steps `edit` and `edit-score`."""

from dataclasses import asdict, replace
from itertools import islice

from reprbasis.config.wishes import read
from reprbasis.errors import UserError
from reprbasis.interfaces.artifact import Artifact
from reprbasis.interfaces.corpus import CorpusContext
from reprbasis.interfaces.editor import EditPlan
from reprbasis.interfaces.evaluator import Findings
from reprbasis.interfaces.step import Step, StepContext
from reprbasis.interfaces.tokens import Example
from reprbasis.runtime.basis import Basis
from reprbasis.runtime.wishes import asked

from .cases import CASES, Preference, neutral
from .config import AskedConfig, EditConfig, EditScoreConfig
from .judge import Judge, Stress
from .probes import Case


def case_of(context: StepContext, config: AskedConfig) -> Case:
    """What is asked for. The same config and seed give the same case, so `edit-score` measures what `edit` was asked for."""
    if config.request is None:
        maker = Preference.of(config.task) if config.task is not None else CASES[config.benchmark]
        return maker.case(context.registry, context.model, context.seed, config.n, config.case)
    wishes = read(config.request)
    keep, measured = neutral(0), neutral(1)
    if config.texts is not None:
        texts = context.registry.build(config.texts).examples(seed=context.seed, context=CorpusContext(context.model))
        chosen = list(islice(texts, 24))
        keep, measured = chosen[::2], chosen[1::2]
    found = asked(context.model, wishes.wishes, [*keep, *(Example(text=t, key=t) for t in wishes.keep)])
    probes = dict(found.probes)
    fitted, stay = probes.pop("fitted"), {"neighbours": probes.pop("neighbours")} if "neighbours" in probes else {}
    return Case(config.request, found.request, "replace", fitted, probes, stay, measured)


class EditStep(Step[EditConfig]):
    """Makes a plan; the model stays as it is."""

    def run(self, context: StepContext, basis: Basis | None = None) -> Artifact:
        """See the class.

        Raises:
            UserError: the editor works on latents and there is no basis.
        """
        editor = self.config.editor
        if basis is None and context.registry.component("editor", editor.name).component.requires.get("learner"):
            raise UserError(f"the editor '{editor.name}' works on the latents of a basis", do="connect one: from: {basis: STEP}")
        case = case_of(context, self.config)
        plan = context.registry.build(editor).edit(context.model, basis, case.request)
        more = {"case": case.name}
        if self.config.request is not None:
            more["wishes"] = [asdict(w) for w in read(self.config.request).wishes]
        return replace(plan, details={**plan.details, **more})


class EditScoreStep(Step[EditScoreConfig]):
    """Judges a plan."""

    def run(self, context: StepContext, plan: EditPlan) -> Artifact:
        """See the class."""
        c, case = self.config, case_of(context, self.config)
        stress = Stress(c.bits, c.relearn, c.relearn_rate, c.residue) if case.unseen else None
        found = Judge(context.model, case, seed=context.seed)(plan, stress=stress, control=c.control)
        missing = [] if case.unseen else ["nothing is held out: give paraphrases, or a benchmark, to see what generalises"]
        return Findings(found.measurements, found.figures, notes=[*found.notes, *missing], values=found.values)
