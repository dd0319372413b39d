"""`tenfold train`, `tenfold resume`, `tenfold sample`: one run, from a file."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from tenfold.cli import AsJson, app, print_json


@app.command("train")
def train(
    config: Annotated[Path, typer.Argument(help="A run file, for example with `flops = 1e12`.")],
    out: Annotated[Path | None, typer.Option(help="The run's directory; by default generations/NAME of the run file.")] = None,
    home: Annotated[Path, typer.Option(help="Where corpora and runs are kept.")] = Path("generations"),
    launch: Annotated[str | None, typer.Option(help="local:N starts N processes here, and again when some are lost.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what each process would hold and send, and end.")] = False,
    world: Annotated[int | None, typer.Option(help="The number of processes of a dry run.")] = None,
    machine: Annotated[str, typer.Option(help="The accelerator that the planner's figures beside a dry run are for.")] = "h100",
    as_json: AsJson = False,
) -> None:
    """Train one model as a run file says; everything left out is derived from the compute and printed with its reason.

    Examples:

      echo 'flops = 1e12' > run.toml && tenfold train run.toml

      tenfold train run.toml --launch local:8

      torchrun --nproc-per-node 8 -m tenfold train run.toml

      tenfold train run.toml --dry-run --world 16384
    """
    from tenfold.spec.errors import TenfoldError
    from tenfold.train.config import read_config

    if dry_run or world is not None:
        if not dry_run or world is None or world < 1:
            raise TenfoldError("A dry run needs both --dry-run and --world N, the number of processes.")
        from tenfold.cli.dry_run import show_dry_run

        show_dry_run(read_config(config), world, machine, as_json)
        return
    _run(read_config(config), out or home / config.stem, home, as_json, _processes(launch))


def _processes(launch: str | None) -> int | None:
    from tenfold.spec.errors import TenfoldError

    if launch is None:
        return None
    where, _, number = launch.partition(":")
    if where != "local" or not number.isdecimal() or int(number) < 1:
        raise TenfoldError(f"--launch takes local:N, such as local:8, not {launch!r}; for a cluster use `tenfold launch`.")
    return int(number)


@app.command("resume")
def resume(
    generation: Annotated[Path, typer.Argument(help="The directory of a run that was stopped.")],
    home: Annotated[Path | None, typer.Option(help="Where the corpora are kept; by default beside the run.")] = None,
    as_json: AsJson = False,
) -> None:
    """Go on with a run from its newest checkpoint, to the very same weights as without the stop.

    Example: tenfold resume generations/run
    """
    from tenfold.spec.errors import TenfoldError
    from tenfold.train.config import read_config
    from tenfold.train.trainer import read_result

    if not (generation / "run.toml").exists():
        raise TenfoldError(f"{generation} is no run: it has no run.toml.")
    if read_result(generation) is not None:
        raise TenfoldError(f"The run in {generation} has finished; there is nothing to resume.")
    _run(read_config(generation / "run.toml"), generation, home or generation.parent, as_json)


def _run(config: Any, directory: Path, home: Path, as_json: bool, processes: int | None = None) -> None:
    from rich.console import Console

    from tenfold.cli.auto_layout import choose_layout
    from tenfold.launch.failures import noted
    from tenfold.launch.job import Resources, open_launcher
    from tenfold.spec.errors import TenfoldError
    from tenfold.spec.threads import available_cores
    from tenfold.spec.units import duration, si
    from tenfold.train.checkpoint import on_first_process
    from tenfold.train.config import resolve_model
    from tenfold.train.optim.hyperparameters import derive
    from tenfold.train.parallel.parallelize import start_processes
    from tenfold.train.precision import this_accelerator
    from tenfold.train.jobs import train_on
    from tenfold.train.text import open_text
    from tenfold.train.trainer import train as train_run

    start_processes()
    first = int(os.environ.get("RANK", "0")) == 0
    console = Console(stderr=as_json, quiet=not first)
    on_first_process(lambda: open_text(config, home) and None)  # the others find it made
    corpus = open_text(config, home, quiet=True)
    spec, tokens = resolve_model(config, corpus.vocab_size)
    h = derive(
        spec,
        tokens,
        config.seq_len,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        beta2=config.beta2,
    )
    world = processes or int(os.environ.get("WORLD_SIZE", "1"))
    config = choose_layout(config, spec, world, h.batch_size, this_accelerator())
    flops = tokens * spec.train_flops_per_token(config.seq_len)
    console.print(
        f"{spec.name}: {spec.dim} wide, {spec.n_layers} layers, {si(spec.parameters().total, 'parameters')}; "
        f"{si(tokens, 'tokens')}, {si(flops, 'FLOPs')}, {h.steps} steps of {h.batch_size} x {config.seq_len} tokens.",
        highlight=False,
    )
    for name, reason in h.reasons.items():
        console.print(f"  {name} = {getattr(h, name):.4g}: {reason}", highlight=False)
    if processes is None:
        with noted(directory):
            result = train_run(config, corpus, directory, title=directory.name, quiet=as_json)
    else:
        cores = 0 if "OMP_NUM_THREADS" in os.environ else available_cores()
        needs = Resources(processes=processes, cores=cores)
        result = train_on(open_launcher("local"), needs, config, directory, home, quiet=as_json)
    if not result.finished:
        raise TenfoldError(f"Stopped and saved at step {result.step}: `tenfold resume {directory}` goes on from there.")
    if as_json:
        if first:
            print_json(asdict(result))
        return
    console.print(
        f"Validation: {result.bits_per_byte:.4f} bits per byte ({result.loss:.4f} nats per token). {duration(result.seconds)}, "
        f"{si(result.tokens_per_s, 'tokens/s')}, MFU {result.mfu:.0%}, {result.energy_kwh * 1000:.2f} Wh ({result.energy_source}), "
        f"peak memory {result.peak_memory_gib:.2f} GiB.",
        highlight=False,
    )


@app.command("sample")
def sample(
    generation: Annotated[Path, typer.Argument(help="A generation, or any Hugging Face directory or GGUF file of a Llama.")],
    prompt: Annotated[str | None, typer.Argument(help="What the text begins with: 'def ', or nothing after an image.")] = None,
    image: Annotated[Path | None, typer.Option(help="An image that stands before the text, for a model that sees.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to write.")] = 200,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token every time.")] = 0.7,
    top_p: Annotated[float, typer.Option(help="Draw from the likeliest tokens that hold this share.")] = 0.95,
    seed: Annotated[int, typer.Option(help="Seed of the draw.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Let a model write.

    Examples:

      tenfold sample generations/g1 "def " --temperature 0.5

      tenfold sample generations/drawings --image cat.png
    """
    from tenfold.serve.complete import complete

    path = generation / "model" if (generation / "model").is_dir() else generation
    if prompt is None:
        prompt = "" if image else "def "
    text = complete(
        path, prompt, max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed, image=image
    )
    if as_json:
        print_json({"prompt": prompt, "text": text})
    else:
        print(text)
