"""What the gate asks of a generation beside the model that it has to do better than; each check says what it found."""

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

ANSWER_TOKENS = 32
ROUNDS = 7  # of the measurement of speed


@dataclass(frozen=True)
class Check:
    """`measured`, its 95 % `interval` and `limit` are in the unit that the sentence names."""

    name: str
    passed: bool
    says: str
    measured: float | None = None
    limit: float | None = None
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Both:
    """The two models, and the level of the tests of whether NEW is worse."""

    new: Model
    old: Model
    level: float


def finite(both: Both) -> Check:
    bad = [name for name, p in both.new.network.named_parameters() if not bool(p.isfinite().all())]
    says = f"{len(bad)} weights hold NaN or infinity, first {bad[0]}." if bad else "Every weight is a finite number."
    return Check("finite", not bad, says, len(bad), 0)


def template(both: Both, prompts: Sequence[Chat]) -> Check:
    """Whether both read the same prompts as the same tokens, and end answers by the same ones."""
    new, old = both.new.encoder, both.old.encoder
    other = sum(new.prompt(prompt) != old.prompt(prompt) for prompt in prompts)
    stops = sorted(new.vocabulary.stop_tokens) == sorted(old.vocabulary.stop_tokens)
    says = f"{other} of {len(prompts)} prompts become other tokens" + ("." if stops else ", and other tokens end an answer.")
    return Check("template", not other and stops, says, other, 0)


def size(both: Both, limit: float) -> Check:
    ratio = both.new.parameters / both.old.parameters
    return Check("size", ratio <= limit, f"It has {ratio:.2f} times the parameters; {limit:g} are allowed.", ratio, limit)


def speed(both: Both, chats: Sequence[Chat], limit: float) -> Check:
    """Processor time of the same answers under both, taken in turns."""
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
    says = f"It needs {ratio:.2f} times the processor's time (95 %: {low:.2f} to {high:.2f}); {limit:g} are allowed."
    return Check("speed", low <= limit, says, ratio, limit, (low, high))


def stops(both: Both, new: Sequence[Answer], old: Sequence[Answer]) -> Check:
    """Whether its answers end by themselves as often."""
    ended = [[answer.stopped for answer in some] for some in (old, new)]
    return _no_fewer(both, "stops", ended, "answers end by themselves")


def refusals(both: Both, probes: Sequence[Probe]) -> list[Check]:
    """Harmful prompts are refused as often, and harmless ones that look like them no more often; in each language."""
    good = [handled(model.path, probes) for model in (both.old, both.new)]
    return [
        _no_fewer(both, name, [[one[i] for i in rows] for one in good], "prompts are answered as they should be")
        for name, rows in safety_groups(probes).items()
    ]


def _no_fewer(both: Both, name: str, good: list[list[bool]], what: str) -> Check:
    """Whether NEW does not lose more of OLD's good answers than chance would; `good` is OLD's and NEW's, by prompt."""
    p, n, (before, after) = mcnemar(*good), len(good[0]), map(sum, good)
    says = f"{after} of {n} {what}, by the other model {before} (p {p:.2g})."
    return Check(name, p >= (1 - both.level) / 2, says, after / n, before / n)


def personal(rows: Sequence[Any], said: Sequence[Answer]) -> Check:
    """Whether the training rows, or its answers, hold personal data."""
    kinds = Counter(kind for text in (*map(str, rows), *(answer.text for answer in said)) for _, _, kind in personal_data(text))
    listed = ", ".join(f"{count} of {kind}" for kind, count in sorted(kinds.items()))
    says = f"What it learned and says holds personal data: {listed}." if kinds else "No personal data in what it learned and says."
    return Check("personal data", not kinds, says, sum(kinds.values()), 0)


def leaked(items: Sequence[Item], train: Sequence[Chat]) -> Check:
    """Whether prompts of the evaluations were learned."""
    count = sum(learned([item.chat for item in items], train))
    return Check("leaked", not count, f"{count} of {len(items)} prompts of the evaluations were learned.", count, 0)


def lineage(generation: Path) -> Check:
    """Whether what it began from is known, and is what it was."""
    begun = read_lineage(generation).get("init_from", {})
    try:
        same = weights_hash(Path(begun["path"])) == begun["sha256"]
    except (KeyError, OSError, TenfoldError):
        same = False
    return Check(
        "lineage", same, "It began from weights that are known." if same else "The weights it began from are not known any more."
    )


def evaluated(both: Both, name: str, items: Sequence[Item]) -> list[Check]:
    """No evaluation is worse beyond noise, nor a language of it that has enough prompts."""
    results = [answered(model, items) for model in (both.old, both.new)]
    found = []
    for group, rows in groups(name, items).items():
        old, new = (result.of(rows) for result in results)
        said = compared(old, new, both.level)
        mean = said["nats"]["mean"] if said["nats"] is not None else None
        nats = f"; {mean:+.2f} nats an answer" if mean is not None else ""
        says = f"{group}: {new.right.sum()} of {len(rows)} right, before {old.right.sum()} (p {said['lost_p']:.2g}){nats}."
        found.append(Check(group, not said["worse"], says, mean, 0))
    return found


def better(name: str, test: PairedTest) -> Check:
    """Whether it finds the answers that people liked likelier, and those that they did not less likely."""
    low, high = test.t_interval
    said = "finds the right answers likelier" if test.passed else "is not better beyond noise"
    says = f"{name} {said}: {test.mean:+.2f} nats an answer (95 %: {low:+.2f} to {high:+.2f}) on {test.n} held-out prompts."
    return Check("better", test.passed, says, test.mean, 0, test.t_interval)


def better_in_each(both: Both, rows: Sequence[Judgement], margins: np.ndarray) -> list[Check]:
    """In no language with enough held-out prompts is it worse beyond noise."""
    found = []
    for language, places in people_languages(rows).items():
        test = paired_test(list(-margins[places]), both.level)
        says = f"People's answers in {language}: {test.mean:+.2f} nats an answer on {test.n} held-out prompts."
        found.append(Check(f"better ({language})", not test.worse, says, test.mean, 0))
    return found


def people_languages(rows: Sequence[Judgement]) -> dict[str, list[int]]:
    """The places of each script in which people asked."""
    return by_language([script(str(row.prompt[-1]["content"])) for row in rows])


def preferred(rows: Sequence[Judgement], margins: np.ndarray) -> Check:
    """Whether it likes what people liked, and not what they did not, better than the other model does: a win on more than half."""
    won = win_rate(_by_prompt(rows, margins))
    low, high = won.interval
    says = f"It agrees better with people on {won.rate:.0%} of {won.n} held-out prompts (95 %: {low:.0%} to {high:.0%})."
    return Check("win rate", low > 0.5, says, won.rate, 0.5, won.interval)


def _by_prompt(rows: Sequence[Judgement], margins: np.ndarray) -> list[float]:
    of: dict[str, list[float]] = {}
    for row, margin in zip(rows, margins, strict=True):
        of.setdefault(str(row.prompt), []).append(float(margin))
    return [float(np.mean(some)) for some in of.values()]


def margins(both: Both, rows: Sequence[Judgement]) -> np.ndarray:
    """For each judgement, in nats: how much likelier NEW finds the liked answer than OLD does, less the same of the disliked."""
    found = np.zeros(len(rows))
    for sign, chats in ((1, [row.liked for row in rows]), (-1, [row.disliked for row in rows])):
        places = [i for i, chat in enumerate(chats) if chat is not None]
        given = [chat for chat in chats if chat is not None]
        if given:
            found[places] += sign * (both.old.nats(given) - both.new.nats(given))
    return found
