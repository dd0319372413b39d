"""Commands on stored models: upcycle a dense model to a mixture of experts, export a model for another tool."""

from pathlib import Path
from typing import Annotated

from msgspec import Meta

from tenfold.model.path import model_path
from tenfold.spec.commands import Folder, Json, print_json
from tenfold.spec.ranges import Seed

Experts = Annotated[int, Meta(ge=1, le=2**16)]


def upcycle(
    dense: Annotated[Path, Meta(description="The dense Llama 3: a generation, a Hugging Face directory or a GGUF file.")],
    /,
    *,
    out: Annotated[Folder, Meta(description="Folder for the model with experts, in Hugging Face layout; it must be empty.")],
    experts: Annotated[
        Experts, Meta(description="Routed experts per layer; each token uses one of them and one shared expert.")
    ] = 16,
    seed: Annotated[Seed, Meta(description="Random seed for the router weights.")] = 0,
    json: Json = False,
) -> None:
    """Convert a dense Llama 3 to a Llama 4 with experts that computes nearly the same function, as a start for more training.

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
    to: Annotated[
        str,
        Meta(
            description="LAYOUT:FORMAT. gguf: f32, f16, bf16, q8_0, q5_0, q4_0, q6_k, q5_k, q4_k; hf: f32, bf16, f16; "
            "meta: bf16, f16, f32; executorch: f32, 8da4w."
        ),
    ],
    out: Annotated[
        Path | None, Meta(description="File or folder to write; by default one named after the model, in the current folder.")
    ] = None,
    json: Json = False,
) -> None:
    """Write a model in another tool's format, and compare the export with the model.

    Where the other tool is installed, it opens the export too. An export that does not compute the same model is deleted.

    Example: tenfold export generations/g1 --to gguf:q8_0
    """
    from tenfold.model.io.export import export as exported

    done = exported(model_path(model), to, out)
    if json:
        print_json({"path": str(done.path), "to": done.to, "notes": done.notes})
        return
    print(f"{done.path} ({done.to}) is done.", *done.notes, sep="\n")
