"""Commands that change models: upcycle a dense one into experts, export one for another tool."""

from pathlib import Path
from typing import Annotated

from msgspec import Meta

from tenfold.model.path import model_path
from tenfold.spec.commands import Folder, Json, print_json
from tenfold.spec.ranges import Seed

Experts = Annotated[int, Meta(ge=1, le=2**16)]


def upcycle(
    dense: Annotated[Path, Meta(description="A generation, or a Hugging Face directory or GGUF file of a dense Llama 3.")],
    /,
    *,
    out: Annotated[Folder, Meta(description="Where the model with experts is written, in Hugging Face layout.")],
    experts: Annotated[Experts, Meta(description="Experts in each layer; a token goes through one of them and a shared one.")] = 16,
    seed: Annotated[Seed, Meta(description="Seed of the routers.")] = 0,
    json: Json = False,
) -> None:
    """Make a dense Llama 3 into a Llama 4 with experts that computes the same, to be trained on.

    Example: tenfold upcycle generations/g1 --out wide && tenfold train --flops 1e12 --init-from wide
    """
    from tenfold.model.io.huggingface import read_model, write_model
    from tenfold.model.upcycle import upcycle as upcycled
    from tenfold.spec.errors import TenfoldError
    from tenfold.spec.units import si

    path = model_path(dense)
    if out.exists() and any(out.iterdir()):
        raise TenfoldError(f"{out} is not empty: choose another folder for the model with experts.")
    model = upcycled(read_model(path), experts, seed=seed)
    write_model(model, out, tokenizer_directory=path)
    counts = model.spec.parameters()
    if json:
        print_json({"model": str(out), "experts": experts, "parameters": counts.total, "active": counts.active})
        return
    print(
        f"{out}: {experts} experts a layer, {si(counts.total, 'parameters')} of which a token uses {si(counts.active)}. Train it "
        f'on with init_from = "{out}" in a run file.'
    )


def export(
    model: Annotated[Path, Meta(description="A generation, a Hugging Face directory or a GGUF file.")],
    /,
    *,
    to: Annotated[str, Meta(description="gguf:f16, q8_0, q4_0, q4_k, ...; hf:f32, ...; meta:bf16, ...; executorch:f32, 8da4w.")],
    out: Annotated[
        Path | None, Meta(description="The file or folder that is made; by default named after the model, here.")
    ] = None,
    json: Json = False,
) -> None:
    """Write a model for another tool, open it there where that is installed, and compare, before it stands under its name.

    Example: tenfold export generations/g1 --to gguf:q8_0
    """
    from tenfold.model.io.export import export as exported

    done = exported(model_path(model), to, out)
    if json:
        print_json({"path": str(done.path), "to": done.to, "notes": done.notes})
        return
    print(f"{done.path} ({done.to}) is done.", *done.notes, sep="\n")
