"""Measure a trained tiny vision-language model and write what was found into its `recipe.json`: `vlm_measure.py FOLDER`."""

import json
import sys
from pathlib import Path

from reprbasis_lvlm.config import LvlmConfig
from reprbasis_lvlm.model import LvlmAdapter
from reprbasis_lvlm.quiz import quiz

SCENES = 600

folder = Path(sys.argv[1])
model = LvlmAdapter(LvlmConfig(checkpoint=str(folder)))
facts = json.loads((folder / "recipe.json").read_text())
facts["accuracy"] = {"n": SCENES, "seed": 1}
for name, objects, sight in (("own", 1, "own"), ("noise", 1, "noise"), ("other", 1, "other"), ("own, 2 objects", 2, "own"),
                             ("own, 3 objects", 3, "own")):
    scores = quiz(model, scenes_asked=SCENES, objects=objects, sight=sight)
    facts["accuracy"][name] = {kind: {"share": round(s.share, 4), "interval": [round(v, 4) for v in s.interval],
                                      "best_constant": round(s.chance, 4)} for kind, s in scores.items()}
    print(name, {kind: f"{s.share:.3f} [{s.interval[0]:.3f}, {s.interval[1]:.3f}]" for kind, s in scores.items()})
(folder / "recipe.json").write_text(json.dumps(facts, indent=2) + "\n")
