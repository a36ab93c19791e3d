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
facts["accuracy"] = {"n": SCENES, "seed": 1, "objects": {}}
for objects in (1, 2, 3):
    facts["accuracy"]["objects"][str(objects)] = found = {}
    for sight in ("own", "noise", "other"):
        scores = quiz(model, scenes_asked=SCENES, objects=objects, sight=sight)
        found[sight] = {kind: {"share": round(s.share, 4), "interval": [round(v, 4) for v in s.interval],
                               "best_constant": round(s.chance, 4)} for kind, s in scores.items()}
        print(objects, sight, {kind: f"{s.share:.3f} [{s.interval[0]:.3f}, {s.interval[1]:.3f}] constant {s.chance:.3f}"
                               for kind, s in scores.items()}, flush=True)
(folder / "recipe.json").write_text(json.dumps(facts, indent=2) + "\n")
