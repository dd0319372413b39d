"""What a ranker keeps beside its model: the content module for new items, the heads of its objectives, and their calibration.

`extras.safetensors` has the weights, `objectives.json` the objectives and their calibration curves. Both are in the run's
directory, beside `model/`.
"""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tenfold.data.interactions.events import Interactions
from tenfold.data.interactions.splits import Held
from tenfold.model.io.stored import save_tensors
from tenfold.rank.content import Content, ContentTower, SemanticIds
from tenfold.rank.model import ItemModel
from tenfold.rank.objectives import Calibration, Objective, calibrate, calibration_error, parse
from tenfold.spec.files import atomic_file, write_json

WEIGHTS, FACTS = "extras.safetensors", "objectives.json"
TOGETHER = 64  # users whose held-out events are predicted at once


class Extras(NamedTuple):
    """The content module and the heads of the objectives, None where a model has none."""

    content: Content | None
    heads: nn.Linear | None
    objectives: list[Objective]
    curves: list[Calibration]

    def predict(self, hidden: Tensor) -> dict[str, np.ndarray]:
        """Calibrated predictions [candidates] by objective, from hidden states [candidates, dim]."""
        if self.heads is None:
            return {}
        outputs = self.heads(hidden).float().numpy()
        found = zip(self.objectives, self.curves, strict=True)
        return {objective.name: curve(outputs[:, i]) for i, (objective, curve) in enumerate(found)}


@torch.no_grad()
def outputs_on(model: ItemModel, interactions: Interactions, held: Held, seq_len: int) -> tuple[np.ndarray, np.ndarray]:
    """The heads' outputs for held-out events, float32 [events, objectives], and the numbers of these events, int64 [events]."""
    assert model.objectives is not None
    users, (first, last), device = interactions.asked(held), interactions.span(held), model.embedding.weight.device
    said, which = [], []
    for some in np.split(users, range(TOGETHER, len(users), TOGETHER)):
        rows = interactions.window(some, np.maximum(0, last[some] + 1 - seq_len), last[some], seq_len)
        rows.tokens[rows.tokens >= interactions.vocab_size] = 0
        hidden = model.hidden(torch.from_numpy(rows.tokens).to(device), times=torch.from_numpy(rows.times[:, :-1]).to(device))
        place = rows.events - interactions.offsets[some][:, None]
        asked = (rows.events >= 0) & (place >= first[some][:, None]) & (rows.tokens > 0)
        said.append(model.objectives(hidden).float().cpu().numpy()[asked])
        which.append(rows.events[asked])
    return np.concatenate(said), np.concatenate(which)


def calibrate_objectives(
    model: ItemModel, interactions: Interactions, objectives: list[Objective], values: np.ndarray | None, seq_len: int
) -> list[Calibration]:
    """The calibration curve of each objective, fitted on the validation events; `values` [events, objectives] are the targets."""
    if values is None:
        return []
    outputs, events = outputs_on(model, interactions, "validation", seq_len)
    curves = []
    for i, objective in enumerate(objectives):
        there = ~np.isnan(values[events, i])
        said, came = (outputs[there, i], values[events[there], i]) if there.any() else (np.zeros(1), np.zeros(1))
        curves.append(calibrate(said.astype(np.float64), came.astype(np.float64), objective))
    return curves


def objective_scores(ranker_extras: Extras, model: ItemModel, interactions: Interactions, seq_len: int) -> dict[str, float]:
    """The calibration error of the predictions on the test events, by objective."""
    model.objectives = ranker_extras.heads
    if model.objectives is None:
        return {}
    outputs, events = outputs_on(model, interactions, "test", seq_len)
    found = {}
    for i, (objective, curve) in enumerate(zip(ranker_extras.objectives, ranker_extras.curves, strict=True)):
        came = objective.of(interactions)[events]
        came, there = came if objective.test else np.expm1(came), ~np.isnan(came)
        found[objective.name] = calibration_error(curve(outputs[there, i]), came[there])
    return found


@torch.no_grad()
def write_extras(model: ItemModel, objectives: list[Objective], curves: list[Calibration], directory: Path) -> None:
    """Write content, heads and curves to `directory` and remove them from the model, adding the content's vectors to its table."""
    weights = {name: p for name, p in model.state_dict().items() if name.startswith(("content.", "objectives."))}
    with atomic_file(directory / WEIGHTS) as scratch:
        save_tensors({name: p.detach().cpu().contiguous() for name, p in weights.items()}, scratch)
    known = zip(objectives, curves, strict=True)
    write_json(directory / FACTS, [{"objective": objective.name, **curve._asdict()} for objective, curve in known])
    model.embedding.weight.copy_(model.table())
    model.content = model.objectives = None


def read_extras(directory: Path, dim: int) -> Extras:
    """The extras in a run's directory; empty where the model was trained for the next item only. `dim` is the model's width."""
    file = directory / WEIGHTS
    if not file.exists():
        return Extras(None, None, [], [])
    weights = load_file(file)
    content: ContentTower | SemanticIds | None = None
    heads = None
    if "content.w1.weight" in weights:
        content = ContentTower(weights["content.w1.weight"].shape[1], dim)
    elif "content.centres" in weights:
        content = SemanticIds(weights["content.centres"], dim)
    if "objectives.weight" in weights:
        heads = nn.Linear(dim, len(weights["objectives.weight"]))
    for prefix, part in (("content.", content), ("objectives.", heads)):
        if part is not None:
            part.load_state_dict({name.removeprefix(prefix): p for name, p in weights.items() if name.startswith(prefix)})
            part.requires_grad_(False)
    facts = json.loads((directory / FACTS).read_text())
    curves = [Calibration(fact["outputs"], fact["values"]) for fact in facts]
    return Extras(content, heads, [parse(fact["objective"]) for fact in facts], curves)
