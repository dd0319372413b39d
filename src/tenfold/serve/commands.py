"""Commands that serve models, chat with them, sample from them, and export the users' feedback."""

from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, Struct

from tenfold.model.path import model_path
from tenfold.serve.options import EngineOptions, Quantization, ServerOptions, name_models
from tenfold.spec.commands import File, Given, Json, print_json
from tenfold.spec.ranges import Count, Seed, Share, Temperature, Text, TopP

FEEDBACK = "feedback.db"
ModelPath = Annotated[Path, Meta(description="A generation, a Hugging Face directory, or a GGUF file of a Llama model.")]


class SampleOptions(Struct, frozen=True):
    """Options of generating one text."""

    max_new_tokens: Annotated[Count, Meta(description="Largest number of tokens to generate.")] = 200
    temperature: Annotated[
        Temperature, Meta(description="Sampling temperature, at most 2; 0 always takes the most likely token.")
    ] = 0.7
    top_p: Annotated[
        TopP, Meta(description="Draw from the most likely tokens whose probabilities add up to this share (nucleus sampling).")
    ] = 0.95
    seed: Annotated[Seed, Meta(description="Seed of the random draws.")] = 0


class ChatOptions(Struct, frozen=True):
    """Options of a chat in the terminal."""

    temperature: Annotated[
        Temperature, Meta(description="Sampling temperature, at most 2; 0 always takes the most likely token.")
    ] = 0.7
    top_p: Annotated[
        TopP, Meta(description="Draw from the most likely tokens whose probabilities add up to this share (nucleus sampling).")
    ] = 0.95
    max_tokens: Annotated[Count, Meta(description="Largest number of tokens in an answer.")] = 512
    system: Annotated[str, Meta(description="System prompt; empty for none.")] = ""


def start(
    models: Annotated[list[Path], Meta(description="Models to serve; the first answers requests that name no model.")],
    /,
    *,
    engine: Given[EngineOptions],
    server: ServerOptions = ServerOptions(feedback=FEEDBACK),
) -> None:
    """Serve models: a chat page at / and an OpenAI-compatible API at /v1.

    Example: tenfold serve generations/g1 --port 8000
    """
    from tenfold.serve.api.server import serve
    from tenfold.spec.terminal import console

    if engine.get("draft_model"):
        engine["draft_model"] = model_path(engine["draft_model"])
    named = name_models([model_path(path) for path in models])
    options = {name: EngineOptions(**{**engine, "path": path}) for name, path in named.items()}
    host = f"[{server.host}]" if ":" in server.host else server.host  # IPv6
    first, address = next(iter(options)), f"http://{host}:{server.port}"
    console().print(f"{first}: loading")
    serve(options, server, on_ready=lambda: console().print(f"{', '.join(options)}: chat at {address}/, API at {address}/v1"))


def key(
    name: Annotated[Text, Meta(description="Name of the key's owner.")],
    /,
    *,
    file: Annotated[File, Meta(description="File in which the hashes of the keys are stored.")] = Path("serve-keys.json"),
    operator: Annotated[
        bool, Meta(description="Make an operator's key, which may also swap models and delete other users' data.")
    ] = False,
    revoke: Annotated[bool, Meta(description="Remove the key of NAME instead of making one.")] = False,
) -> None:
    """Make an API key for `tenfold serve --keys`: it is shown once, only its hash is stored, and a running server accepts it.

    Examples:

      tenfold serve-key alice

      tenfold serve-key alice --revoke
    """
    from tenfold.serve.api.keys import make_key, revoke_key

    if revoke:
        revoke_key(file, name)
    else:
        print(make_key(file, name, operator))


def chat(
    model: ModelPath,
    /,
    *,
    quantization: Annotated[
        Quantization, Meta(description="Format of the weights; exact is the smallest that changes no weight.")
    ] = "exact",
    options: ChatOptions = ChatOptions(),
) -> None:
    """Chat with a model in the terminal; an empty line ends the chat.

    Example: tenfold chat generations/g1
    """
    from tenfold.serve.terminal import converse

    engine = EngineOptions(model_path(model), quantization=quantization, kv_cache_gib=0.5)
    converse(engine, options.temperature, options.top_p, options.max_tokens, options.system)


def sample(
    model: ModelPath,
    prompt: Annotated[str | None, Meta(description="Text to continue; by default 'def ', or nothing after an image.")] = None,
    /,
    *,
    image: Annotated[File | None, Meta(description="Image to put before the text, for a model with an image encoder.")] = None,
    options: SampleOptions = SampleOptions(),
    json: Json = False,
) -> None:
    """Generate text with a model.

    Examples:

      tenfold sample generations/g1 "def " --temperature 0.5

      tenfold sample generations/drawings --image cat.png
    """
    from msgspec.structs import asdict

    from tenfold.serve.complete import complete
    from tenfold.spec.terminal import console

    if prompt is None:
        prompt = "" if image else "def "
    text, cut_at = complete(model_path(model), prompt, **asdict(options), image=image)
    if json:
        print_json({"prompt": prompt, "text": text, "cut_at": cut_at})
        return
    print(text)
    if cut_at is not None:
        console(stderr=True).print(f"The text ends here, at the {cut_at} tokens that the model was trained on: shorten the prompt.")


def export_feedback(
    out: Annotated[File, Meta(description="JSONL file to write; the test rows go to NAME.test.jsonl beside it.")],
    /,
    *,
    format: Annotated[Literal["dpo", "kto", "sft"], Meta(description="Kind of rows, in TRL's format.")] = "dpo",
    database: Annotated[Text, Meta(description="Feedback database: an SQLite file or an SQLAlchemy URL.")] = FEEDBACK,
    test_share: Annotated[Share, Meta(description="Share of the users, 0 to 1, whose rows go to the test file.")] = 0.1,
    json: Json = False,
) -> None:
    """Export the users' feedback as training rows.

    Example: tenfold feedback export --format kto thumbs.jsonl
    """
    from tenfold.serve.feedback.export import export
    from tenfold.serve.feedback.feedback import Feedback

    made = export(Feedback(database, create=False), format, out, test_share=test_share)
    if json:
        print_json({"train": made.train, "test": made.test, "left_out": dict(made.left_out)})
        return
    print(f"{made.train} rows in {out}, {made.test} of other users in {out.with_suffix('.test.jsonl')}.")
    for reason, count in made.left_out.most_common():
        print(f"  left out: {count} ({reason})")
