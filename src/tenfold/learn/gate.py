"""The gate: a generation is released only if it is better than the model before on people's judgements, and worse in nothing else.

Better means, beyond noise (95 %): a higher log-likelihood of the answers that people liked over those that they did not like, and
closer agreement with people on more than half of the held-out prompts. The checks of "not worse" are in `checks.py`; together they
refuse a model that is as good with a probability of 1 %. The difference is forecast from the validation users before it is
measured on the held-out ones.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tenfold.data.conversations.chats import Chat
from tenfold.learn import checks
from tenfold.learn.answers import Model, answers
from tenfold.learn.card import write_card
from tenfold.learn.checks import Both, Check
from tenfold.learn.data import PARTS, VERSION, Judgement, read_judgements, write_versioned
from tenfold.learn.evaluate import groups
from tenfold.learn.items import Item, read_evaluations
from tenfold.learn.lineage import read_lineage
from tenfold.learn.options import GateSettings
from tenfold.learn.safety import DEFAULT, read_safety
from tenfold.learn.safety import groups as safety_groups
from tenfold.learn.statistics import paired_test, predicted
from tenfold.model.io.huggingface import weights_hash
from tenfold.model.path import model_path
from tenfold.spec.errors import TenfoldError
from tenfold.spec.files import file_sha256
from tenfold.spec.forecasts import Forecast, forecast, outcome
from tenfold.spec.versions import read_document

ERROR = 0.01  # the probability that the tests of "not worse" together refuse a model that is as good
TIMED = 8  # chats of the speed measurement


def gate(new: Path, against: Path, home: Path, settings: GateSettings = GateSettings()) -> dict[str, Any]:
    """Compare the generation `new` with the model `against`; writes its gate.json and model card. Returns the content of gate.json.

    A verdict that exists for the same weights, data and checks is returned as it is. The forecast is kept in `home`. Raises
    TenfoldError where `new` has no lineage, its data has changed, or too few prompts are held out.
    """
    lineage = read_lineage(new)
    weights, old = model_path(new), model_path(against)
    hashes = {"new": weights_hash(weights), "old": weights_hash(old)}
    for part in PARTS:
        hashes[part] = file_sha256(file := new / "data" / f"{part}.jsonl")
        if hashes[part] != lineage["data"].get(part):
            raise TenfoldError(f"{file} is not what {new} was tuned with: tune it again.")
    asked = [*map(file_sha256, _files(settings)), settings.max_slowdown, settings.max_growth, settings.allow]
    hashes["checks"] = hashlib.sha256(json.dumps(asked).encode()).hexdigest()
    key = f"learn/gate/{hashlib.sha256(json.dumps(hashes).encode()).hexdigest()[:12]}"
    verdict = new / "gate.json"
    if not verdict.exists() or read_gate(new)["forecast"] != key:
        names = {"new": str(new.resolve()), "old": str(against.resolve())}
        write_versioned(verdict, {**names, "hashes": hashes, **_judge(new, old, home, key, hashes, settings)})
        write_card(new, read_gate(new))
    judged = read_gate(new)
    if "test" in judged:
        outcome(home, key, judged["test"]["mean"])
    return judged


def _files(settings: GateSettings) -> list[Path]:
    return [*settings.evaluations, settings.safety or DEFAULT, *([settings.checkers] if settings.checkers else [])]


def read_gate(new: Path) -> dict[str, Any]:
    """The content of gate.json of a generation. Raises TenfoldError where there is none."""
    return read_document(new / "gate.json", VERSION, f"judge it with `tenfold learn gate {new} --against OLD`")


def _judge(new: Path, old: Path, home: Path, key: str, hashes: dict[str, str], settings: GateSettings) -> dict[str, Any]:
    evaluations = read_evaluations(settings.evaluations, settings.checkers)
    probes, held_out = read_safety(settings.safety or DEFAULT), read_judgements(new / "data" / "held_out.jsonl")
    # One for `stops`, one for each group of probes and each language of people, and two for each group of an evaluation.
    tests = 1 + len(safety_groups(probes)) + len(checks.people_languages(held_out))
    tests += 2 * sum(len(groups(name, items)) for name, items in evaluations.items())
    both = Both(Model(model_path(new)), Model(old), 1 - 2 * ERROR / tests)
    found, said = [checks.finite(both)], {}
    if found[0].passed:
        train, validation = (read_judgements(new / "data" / f"{part}.jsonl") for part in PARTS[:2])
        known = {str(row.prompt) for row in train}
        unseen = [row for row in held_out if str(row.prompt) not in known]
        prompts = len({str(row.prompt) for row in unseen})
        quantiles = predicted(-checks.by_prompt(validation, checks.margins(both, validation)), prompts)
        data = {name: hashes[name] for name in ("validation", "new", "old")}
        made = Forecast(key=key, who="learn", kind="paired_difference", unit="nats/answer", quantiles=quantiles, data=data)
        quantiles = forecast(home, made).quantiles
        margins = checks.margins(both, unseen)
        test = paired_test(-checks.by_prompt(unseen, margins))
        said = {"test": asdict(test), "quantiles": quantiles, "left_out_prompts": len(held_out) - len(unseen)}
        found += [checks.better(new.name, test), checks.preferred(unseen, margins), *checks.better_in_each(both, unseen, margins)]
        learned = [chat for row in train for chat in (row.liked, row.disliked) if chat is not None]
        found += _not_worse(both, new, unseen, learned, settings) + checks.refusals(both, probes)
        found += _evaluated(both, learned, evaluations)
    refused = [check for check in found if not check.passed and check.name not in settings.allow]
    return {
        "passed": not refused, "reason": " ".join(check.says for check in refused or found[1:2]),
        "refused_by": [check.name for check in refused], "checks": [asdict(check) for check in found],
        "forecast": key, "unit": "nats/answer", **said,
    }  # fmt: skip


def _not_worse(both: Both, new: Path, unseen: Sequence[Judgement], learned: Sequence[Chat], settings: GateSettings) -> list[Check]:
    prompts = list({str(row.prompt): row.prompt for row in unseen}.values())
    timed = [*(chat for row in unseen if (chat := row.liked or row.disliked) is not None), *learned][:TIMED]
    said = [answers(model.path, prompts, checks.ANSWER_TOKENS) for model in (both.new, both.old)]
    return [
        checks.template(both, prompts),
        checks.size(both, settings.max_growth),
        checks.speed(both, timed, settings.max_slowdown),
        checks.stops(both, *said),
        checks.personal(learned, said[0]),
        checks.lineage(new),
    ]


def _evaluated(both: Both, learned: Sequence[Chat], evaluations: dict[str, list[Item]]) -> list[Check]:
    every = [item for items in evaluations.values() for item in items]
    found = [checks.leaked(every, learned)] if every else []
    for name, items in evaluations.items():
        found += checks.evaluated(both, name, items)
    return found
