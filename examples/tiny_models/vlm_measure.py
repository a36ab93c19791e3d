"""Measure a trained tiny vision-language model and write what was found into its `recipe.json`: `vlm_measure.py FOLDER`."""

import json
import sys
from pathlib import Path

from reprbasis_lvlm.config import LvlmConfig
from reprbasis_lvlm.model import LvlmAdapter
from reprbasis_lvlm.quiz import CHANCE, quiz

SCENES = 1000

folder = Path(sys.argv[1])
model = LvlmAdapter(LvlmConfig(checkpoint=str(folder)))
facts = json.loads((folder / "recipe.json").read_text())
facts["accuracy"] = {"n": SCENES, "seed": 1, "chance": {k: round(v, 3) for k, v in CHANCE.items()}}
for sight in ("own", "noise", "other"):
    scores = quiz(model, scenes_asked=SCENES, sight=sight)
    facts["accuracy"][sight] = {kind: {"share": s.share, "interval": [round(v, 4) for v in s.interval]}
                                for kind, s in scores.items()}
    print(sight, {kind: f"{s.share:.3f} [{s.interval[0]:.3f}, {s.interval[1]:.3f}]" for kind, s in scores.items()})
(folder / "recipe.json").write_text(json.dumps(facts, indent=2) + "\n")
