"""The checks of the gate: each compares a new generation with an old model, and says in a sentence what it measured."""

import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tenfold.data.conversations.chats import Chat
from tenfold.learn.answers import Answer, Model
from tenfold.learn.data import Judgement
from tenfold.learn.evaluate import answered, compared, groups, learned
from tenfold.learn.items import Item, by_language, script
from tenfold.learn.lineage import read_lineage
from tenfold.learn.personal import found as personal_data
from tenfold.learn.safety import Probe, handled
from tenfold.learn.safety import groups as safety_groups
from tenfold.learn.statistics import PairedTest, mcnemar, paired_test, win_rate
from tenfold.model.io.huggingface import weights_hash
from tenfold.spec.errors import TenfoldError

ANSWER_TOKENS = 32  # of an answer to a held-out prompt, at most
ROUNDS = 7  # repetitions of the speed measurement


@dataclass(frozen=True)
class Check:
    """The result of a check. `measured`, its 95 % `interval` and `limit` are in the unit that the sentence `says` names."""

    name: str
    passed: bool
    says: str
    measured: float | None = None
    limit: float | None = None
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Both:
    """The two models, and the confidence level of each test of whether NEW is worse than OLD."""

    new: Model
    old: Model
    level: float


def finite(both: Both) -> Check:
    """Whether every weight of NEW is a finite number."""
    bad = [name for name, p in both.new.network.named_parameters() if not bool(p.isfinite().all())]
    says = f"{len(bad)} weights hold NaN or infinity, first {bad[0]}." if bad else "Every weight is a finite number."
    return Check("finite", not bad, says, len(bad), 0)


def template(both: Both, prompts: Sequence[Chat]) -> Check:
    """Whether both models turn prompts into the same tokens, and end answers with the same stop tokens."""
    new, old = both.new.encoder, both.old.encoder
    other = sum(new.prompt(prompt) != old.prompt(prompt) for prompt in prompts)
    stops = sorted(new.vocabulary.stop_tokens) == sorted(old.vocabulary.stop_tokens)
    says = f"{other} of {len(prompts)} prompts become other tokens" + ("." if stops else ", and the stop tokens differ.")
    return Check("template", not other and stops, says, other, 0)


def size(both: Both, limit: float) -> Check:
    """Whether NEW has at most `limit` times the parameters of OLD."""
    ratio = both.new.parameters / both.old.parameters
    says = f"It has {ratio:.2f} times the parameters of the other model; at most {limit:g} times are allowed."
    return Check("size", ratio <= limit, says, ratio, limit)


def speed(both: Both, chats: Sequence[Chat], limit: float) -> Check:
    """Whether scoring the same answers needs at most `limit` times the processor time of OLD, measured in turns.

    It is refused where the whole 95 % interval of the ratio lies above the limit.
    """
    logs = []
    for _ in range(ROUNDS):
        took = []
        for model in (both.new, both.old):
            began = time.process_time()
            model.nats(chats)
            took.append(time.process_time() - began)
        logs.append(math.log(took[0] / took[1]))
    low, high = (math.exp(value) for value in paired_test(logs).t_interval)
    ratio = math.exp(float(np.median(logs)))
    interval = f"(95 %: {low:.2f} to {high:.2f})"
    says = f"It needs {ratio:.2f} times the processor time of the other model {interval}; at most {limit:g} times are allowed."
    return Check("speed", low <= limit, says, ratio, limit, (low, high))


def stops(both: Both, new: Sequence[Answer], old: Sequence[Answer]) -> Check:
    """Whether as many answers of NEW as of OLD end with a stop token, beyond chance."""
    ended = [[answer.stopped for answer in some] for some in (old, new)]
    return _no_fewer(both, "stops", ended, "answers end with a stop token")


def refusals(both: Both, probes: Sequence[Probe]) -> list[Check]:
    """Whether NEW refuses as many harmful prompts as OLD, and answers as many harmless ones, in all and in each language."""
    good = [handled(model.path, probes) for model in (both.old, both.new)]
    return [
        _no_fewer(both, name, [[one[i] for i in rows] for one in good], "prompts are handled as they should be")
        for name, rows in safety_groups(probes).items()
    ]


def _no_fewer(both: Both, name: str, good: list[list[bool]], what: str) -> Check:
    """Whether NEW loses no more of OLD's good answers than chance explains; `good` has those of OLD and of NEW, by prompt."""
    p, n, (before, after) = mcnemar(*good), len(good[0]), map(sum, good)
    says = f"{after} of {n} {what}, {before} with the other model (p {p:.2g})."
    return Check(name, p >= (1 - both.level) / 2, says, after / n, before / n)


def personal(rows: Sequence[Any], said: Sequence[Answer]) -> Check:
    """Whether neither the training rows nor the answers of NEW hold personal data."""
    kinds = Counter(kind for text in (*map(str, rows), *(answer.text for answer in said)) for _, _, kind in personal_data(text))
    listed = ", ".join(f"{count} of {kind}" for kind, count in sorted(kinds.items()))
    says = f"The training rows or the answers hold personal data: {listed}." if kinds else "No personal data in rows and answers."
    return Check("personal data", not kinds, says, sum(kinds.values()), 0)


def leaked(items: Sequence[Item], train: Sequence[Chat]) -> Check:
    """Whether no prompt of the evaluations is in the training data."""
    count = sum(learned([item.chat for item in items], train))
    return Check("leaked", not count, f"{count} of {len(items)} prompts of the evaluations are in the training data.", count, 0)


def lineage(generation: Path) -> Check:
    """Whether the weights that the generation was tuned from are recorded, and are still the same."""
    begun = read_lineage(generation).get("init_from", {})
    try:
        same = weights_hash(Path(begun["path"])) == begun["sha256"]
    except (KeyError, OSError, TenfoldError):
        same = False
    says = "are recorded and unchanged" if same else "are not recorded, are missing or have changed"
    return Check("lineage", same, f"The weights that it was tuned from {says}.")


def evaluated(both: Both, name: str, items: Sequence[Item]) -> list[Check]:
    """Whether NEW is no worse beyond noise on an evaluation, and on each language of it that has enough prompts."""
    results = [answered(model, items) for model in (both.old, both.new)]
    found = []
    for group, rows in groups(name, items).items():
        old, new = (result.of(rows) for result in results)
        said = compared(old, new, both.level)
        mean = said["nats"]["mean"] if said["nats"] is not None else None
        nats = f"; {mean:+.2f} nats an answer" if mean is not None else ""
        right = f"{new.right.sum()} of {len(rows)} right, {old.right.sum()} with the other model (p {said['lost_p']:.2g})"
        says = f"{group}: {right}{nats}."
        found.append(Check(group, not said["worse"], says, mean, 0))
    return found


def better(name: str, test: PairedTest) -> Check:
    """Whether NEW gives the answers that people liked a higher likelihood than OLD does, and the others a lower one."""
    low, high = test.t_interval
    said = "gives the right answers a higher likelihood" if test.passed else "is not better beyond noise"
    says = f"{name} {said}: {test.mean:+.2f} nats an answer (95 %: {low:+.2f} to {high:+.2f}) on {test.n} held-out prompts."
    return Check("better", test.passed, says, test.mean, 0, test.t_interval)


def better_in_each(both: Both, rows: Sequence[Judgement], margins: np.ndarray) -> list[Check]:
    """Whether NEW is no worse beyond noise in each language with enough held-out prompts. `margins` are those of `rows`."""
    found, of_prompts = [], by_prompt(rows, margins)
    for language, places in people_languages(rows).items():
        test = paired_test(-of_prompts[places], both.level)
        says = f"People's answers in {language}: {test.mean:+.2f} nats an answer on {test.n} held-out prompts."
        found.append(Check(f"better ({language})", not test.worse, says, test.mean, 0))
    return found


def people_languages(rows: Sequence[Judgement]) -> dict[str, list[int]]:
    """The numbers of the prompts in each script in which people wrote."""
    prompts = {str(row.prompt): row.prompt for row in rows}
    return by_language([script(str(prompt[-1]["content"])) for prompt in prompts.values()])


def preferred(rows: Sequence[Judgement], margins: np.ndarray) -> Check:
    """Whether NEW agrees with people better than OLD on more than half of the prompts (mean margin above 0), beyond noise."""
    won = win_rate(by_prompt(rows, margins))
    low, high = won.interval
    says = f"It agrees better with people on {won.rate:.0%} of {won.n} held-out prompts (95 %: {low:.0%} to {high:.0%})."
    return Check("win rate", low > 0.5, says, won.rate, 0.5, won.interval)


def by_prompt(rows: Sequence[Judgement], margins: np.ndarray) -> np.ndarray:
    """The mean margin of each prompt, float64 [prompts]: judgements of one prompt are no independent samples."""
    of: dict[str, list[float]] = {}
    for row, margin in zip(rows, margins, strict=True):
        of.setdefault(str(row.prompt), []).append(float(margin))
    return np.array([np.mean(some) for some in of.values()])


def margins(both: Both, rows: Sequence[Judgement]) -> np.ndarray:
    """By how many nats NEW finds the liked answer likelier than OLD does, minus the same of the disliked answer: float64 [rows]."""
    found = np.zeros(len(rows))
    for sign, chats in ((1, [row.liked for row in rows]), (-1, [row.disliked for row in rows])):
        places = [i for i, chat in enumerate(chats) if chat is not None]
        given = [chat for chat in chats if chat is not None]
        if given:
            found[places] += sign * (both.old.nats(given) - both.new.nats(given))
    return found
