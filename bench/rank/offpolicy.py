"""Coverage of off-policy intervals: on a simulated bandit of known value, and between Open Bandit's two policies.

    python -m bench.rank.offpolicy                      # 2,000 simulated logs, 200 bootstrap logs of each direction
    python -m bench.rank.offpolicy --worlds 200

Open Bandit's logs are in its wheel, `pip install --no-deps obp==0.4.1` (CC BY 4.0): 10,000 rows of each policy and campaign. The
value of a policy is the mean reward of its own log; the estimate is made from the other policy's log. With 10,000 rows of which
40 have a reward, that value is as uncertain as the estimate, so `covered_both` counts values within both uncertainties. The
probabilities of the uniform policy are known; those of Thompson sampling are its mean propensities by item and place in its log.
"""

import math
import tempfile
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow.csv

from bench.harness import Row, options, write_results
from tenfold.rank.offpolicy.estimators import estimates
from tenfold.rank.offpolicy.log import Log, Policy, read_log, rows_of, table_policy, uniform
from tenfold.rank.offpolicy.rewards import Choice

NAMES = ("ips", "snips", "dr")
CAMPAIGNS = ("all", "men", "women")
ROWS = 3000  # of a simulated log


@dataclass(frozen=True)
class Bandit:
    """A simulated bandit: items of different quality at three places, and in each round a score of each item.

    The reward depends on quality, score and place. The policy of the log knows only the quality and draws uniformly three times in
    ten; the new policy also uses the scores.
    """

    items: int = 20
    places: int = 3
    seed: int = 0

    @cached_property
    def quality(self) -> np.ndarray:
        return np.random.default_rng(self.seed).standard_normal(self.items)

    def rounds(self, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Scores [n, items], places [n], the mean reward of every item [n, items], and the new policy's chances [n, items]."""
        score, place = rng.standard_normal((n, self.items)), rng.integers(0, self.places, n)
        mean = 1 / (1 + np.exp(2.2 - 0.7 * self.quality - 0.8 * score + 0.4 * place[:, None]))
        chances = np.exp(2 * score + 0.5 * self.quality)
        return score, place, mean, chances / chances.sum(1, keepdims=True)

    def value(self, n: int, rng: np.random.Generator) -> float:
        """The new policy's mean reward over `n` rounds, exact over its choices."""
        _, _, mean, chances = self.rounds(n, rng)
        return float((chances * mean).sum(1).mean())

    def logged(self, n: int, rng: np.random.Generator) -> tuple[Log, Policy]:
        """A log of `n` rounds, and the new policy in the same rounds."""
        score, place, mean, chances = self.rounds(n, rng)
        weight = np.exp(0.6 * self.quality)
        logging = 0.7 * weight / weight.sum() + 0.3 / self.items
        item = rng.choice(self.items, n, p=logging)
        reward = (rng.random(n) < mean[np.arange(n), item]).astype(float)
        log = Log([str(i) for i in range(self.items)], item, place, reward, logging[item], np.arange(n))
        items = np.broadcast_to(np.arange(self.items), score.shape)
        choice = Choice(items, np.broadcast_to(place[:, None], score.shape), score)
        return log, Policy(choice, chances, score[np.arange(n), item])


def made(worlds: int) -> Row:
    """Coverage and root mean square errors over simulated logs."""
    bandit, rng = Bandit(), np.random.default_rng(1)
    truth = bandit.value(2_000_000, rng)
    found = [estimates(rows_of(*bandit.logged(ROWS, rng))) for _ in range(worlds)]
    row: Row = {"log": "made bandit", "rows": ROWS, "worlds": worlds, "value": truth}
    for name in NAMES:
        row[f"{name}_covered"] = float(np.mean([one[name].low <= truth <= one[name].high for one in found]))
        row[f"{name}_error"] = float(np.sqrt(np.mean([(one[name].value - truth) ** 2 for one in found])))
    return row


def drawn(log: Log, rows: np.ndarray) -> Log:
    """A log of these rows; each row is its own group (user)."""
    columns = (column[rows] for column in (log.item, log.place, log.reward, log.propensity))
    return Log(log.items, *columns, np.arange(len(rows)))


def open_bandit(folder: Path, campaign: str, worlds: int, scratch: Path) -> list[Row]:
    """Estimate each policy's value from bootstrap samples of the other's log; the true value is taken from its own log."""
    files = {name: folder / name / campaign / f"{campaign}.csv" for name in ("random", "bts")}
    logs = {name: read_log(file) for name, file in files.items()}
    write_policy(files["bts"], scratch)
    found = []
    for of, source in (("random", "bts"), ("bts", "random")):
        truth, rng = float(logs[of].reward.mean()), np.random.default_rng(0)
        inside, both = dict.fromkeys(NAMES, 0), dict.fromkeys(NAMES, 0)
        own = math.sqrt(truth * (1 - truth) / len(logs[of].reward)) * 1.96
        for _ in range(worlds):
            log = drawn(logs[source], rng.integers(0, len(logs[source].item), len(logs[source].item)))
            made = estimates(rows_of(log, uniform(log) if of == "random" else table_policy(log, scratch)))
            for name in NAMES:
                inside[name] += made[name].low <= truth <= made[name].high
                both[name] += abs(made[name].value - truth) <= math.hypot(own, made[name].high - made[name].value)
        shares = {f"{name}_covered": inside[name] / worlds for name in NAMES}
        shares |= {f"{name}_covered_both": both[name] / worlds for name in NAMES}
        found.append({"log": f"Open Bandit {campaign}: {of} from {source}", "worlds": worlds, "value": truth, **shares})
    return found


def write_policy(log: Path, out: Path) -> None:
    """Write Thompson sampling's probabilities by item and place: mean propensities, scaled to sum to 1 at each place."""
    table = pyarrow.csv.read_csv(log).group_by(["item_id", "position"]).aggregate([("propensity_score", "mean")]).to_pylist()
    total: dict[int, float] = {}
    for row in table:
        total[row["position"]] = total.get(row["position"], 0.0) + row["propensity_score_mean"]
    rows = [f"{row['item_id']},{row['position']},{row['propensity_score_mean'] / total[row['position']]}" for row in table]
    out.write_text("item,position,probability\n" + "\n".join(rows) + "\n")


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--worlds", type=int, default=2000)
    asked = parser.parse_args()
    rows = [made(asked.worlds)]
    spec = find_spec("obp")
    if spec is None or not spec.submodule_search_locations:
        print("Open Bandit's logs are left out: pip install --no-deps obp==0.4.1")
    else:
        folder = Path(spec.submodule_search_locations[0]) / "dataset" / "obd"
        with tempfile.TemporaryDirectory() as scratch:
            for campaign in CAMPAIGNS:
                rows += open_bandit(folder, campaign, max(1, asked.worlds // 10), Path(scratch) / "policy.csv")
    for row in rows:
        print(row)
    shown = ", ".join(f"{name.upper()} {rows[0][f'{name}_covered']:.1%}" for name in NAMES)
    write_results("rank_offpolicy", rows, [("off-policy intervals of 95 % hold the value of a made bandit", shown)])


if __name__ == "__main__":
    main()
