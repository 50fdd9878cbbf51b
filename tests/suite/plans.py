"""Plans for tests: no unit of them is ever run."""

from collections.abc import Mapping
from typing import Any

from impact_lightning.suite.levels import Level, Levels
from impact_lightning.suite.plan import Plan, make_plan
from impact_lightning.suite.sources import Pruned, Shared, Source, Trained, Training

SAE = Level(data={"sites": ["blocks.0.resid_post"]})
SHARED = Shared(
    {"class_path": "X", "init_args": {"n": 4, "augment": {"class_path": "Y"}}}, {"name": "vit"}, {"accelerator": "cpu"}
)
MODELS: dict[str, Source] = {
    "wanda70": Pruned("dense", 0.7, finetune=Training(model={"lr": 1e-4})),
    "dense": Trained(Training(model={"lr": 1e-3}, trainer={"max_epochs": 2})),
}


def plan(models: Mapping[str, Source] = MODELS, levels: Levels | None = None, **changes: Any) -> Plan:
    options: dict[str, Any] = {"shared": SHARED, "seeds": [0], "reference": "dense", **changes}
    return make_plan(models, levels or Levels(sae=SAE), options["shared"], options["seeds"], options["reference"])
