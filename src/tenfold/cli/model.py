"""`tenfold upcycle`: a dense model made into experts."""

from pathlib import Path
from typing import Annotated

import typer

from tenfold.cli import AsJson, app, print_json


@app.command("upcycle")
def upcycle(
    dense: Annotated[Path, typer.Argument(help="A generation, or any Hugging Face directory or GGUF file of a dense Llama 3.")],
    out: Annotated[Path, typer.Option(help="Where the model with experts is written, in Hugging Face layout.")],
    experts: Annotated[int, typer.Option(help="Experts in every layer; each token goes through one, and a shared one.")] = 16,
    seed: Annotated[int, typer.Option(help="Seed of the routers.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Make a dense Llama 3 into a Llama 4 with experts that computes the same, to be trained on.

    Example: tenfold upcycle generations/g1 --out wide && echo 'flops = 1e12\\nstart_from = "wide"' > run.toml
    """
    from tenfold.model.io.huggingface import read_model, write_model
    from tenfold.model.upcycle import upcycle as upcycled
    from tenfold.spec.errors import TenfoldError
    from tenfold.spec.units import si

    path = dense / "model" if (dense / "model").is_dir() else dense
    if out.exists() and any(out.iterdir()):
        raise TenfoldError(f"{out} is not empty: choose another folder for the model with experts.")
    model = upcycled(read_model(path), experts, seed=seed)
    write_model(model, out, tokenizer_directory=path if path.is_dir() else None)
    counts = model.spec.parameters()
    if as_json:
        print_json({"model": str(out), "experts": experts, "parameters": counts.total, "active": counts.active})
        return
    print(
        f"{out}: {experts} experts a layer, {si(counts.total, 'parameters')} of which a token uses {si(counts.active)}. Train it "
        f'on with init_from = "{out}" in a run file.'
    )
