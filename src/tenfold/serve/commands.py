"""Serve models, talk with them, and keep what people say of their answers."""

from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, Struct

from tenfold.model.path import model_path
from tenfold.serve.options import EngineOptions, Quantization, ServerOptions, name_models
from tenfold.spec.commands import File, Given, Json, print_json
from tenfold.spec.ranges import Count, Seed, Share, Temperature, Text, TopP

FEEDBACK = "feedback.db"
ModelPath = Annotated[Path, Meta(description="A generation, a Hugging Face directory, or a GGUF file of a Llama.")]


class SampleOptions(Struct, frozen=True):
    """How tokens are drawn."""

    max_new_tokens: Annotated[Count, Meta(description="Tokens to write.")] = 200
    temperature: Annotated[Temperature, Meta(description="0 takes the likeliest token every time.")] = 0.7
    top_p: Annotated[TopP, Meta(description="Draw from the likeliest tokens that hold this share.")] = 0.95
    seed: Annotated[Seed, Meta(description="Seed of the draw.")] = 0


class ChatOptions(Struct, frozen=True):
    """How a conversation in the terminal is held."""

    temperature: Annotated[Temperature, Meta(description="0 takes the likeliest token every time.")] = 0.7
    top_p: Annotated[TopP, Meta(description="Draw from the likeliest tokens that hold this share.")] = 0.95
    max_tokens: Annotated[Count, Meta(description="Longest answer.")] = 512
    system: Annotated[str, Meta(description="What the model is told before the conversation.")] = ""


def start(
    models: Annotated[list[Path], Meta(description="Models; the first answers where a request names none.")],
    /,
    *,
    engine: Given[EngineOptions],
    server: ServerOptions = ServerOptions(feedback=FEEDBACK),
) -> None:
    """A chat page at / and an OpenAI-compatible API at /v1.

    Example: tenfold serve generations/g1 --port 8000
    """
    from tenfold.serve.api.server import serve
    from tenfold.spec.terminal import console

    if engine.get("draft_model"):
        engine["draft_model"] = model_path(engine["draft_model"])
    named = name_models([model_path(path) for path in models])
    options = {name: EngineOptions(**{**engine, "path": path}) for name, path in named.items()}
    first, address = next(iter(options)), f"http://{server.host}:{server.port}"
    console().print(f"{first}: loading")
    serve(options, server, on_ready=lambda: console().print(f"{', '.join(options)}: chat at {address}/, API at {address}/v1"))


def key(
    name: Annotated[Text, Meta(description="Whose key it is.")],
    /,
    *,
    file: Annotated[File, Meta(description="Where hashes of keys are kept.")] = Path("serve-keys.json"),
    operator: Annotated[bool, Meta(description="The key of an operator, who may swap models and delete what others gave.")] = False,
    revoke: Annotated[bool, Meta(description="Take the key away instead.")] = False,
) -> None:
    """Make a key for `tenfold serve --keys`; it is shown once and kept as a hash. A running server notices.

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
    quantization: Annotated[Quantization, Meta(description="Format of the weights; exact changes none of them.")] = "exact",
    options: ChatOptions = ChatOptions(),
) -> None:
    """Talk with a model in the terminal; an empty line ends it.

    Example: tenfold chat generations/g1
    """
    from tenfold.serve.terminal import converse

    engine = EngineOptions(model_path(model), quantization=quantization, kv_cache_gib=0.5)
    converse(engine, options.temperature, options.top_p, options.max_tokens, options.system)


def sample(
    model: ModelPath,
    prompt: Annotated[str | None, Meta(description="What the text begins with: 'def ', or nothing after an image.")] = None,
    /,
    *,
    image: Annotated[File | None, Meta(description="An image that stands before the text, for a model that sees.")] = None,
    options: SampleOptions = SampleOptions(),
    json: Json = False,
) -> None:
    """Let a model write.

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
    out: Annotated[File, Meta(description="File to write; the test part goes to NAME.test.jsonl beside it.")],
    /,
    *,
    format: Annotated[Literal["dpo", "kto", "sft"], Meta(description="The kind of rows, as TRL reads them.")] = "dpo",
    database: Annotated[Text, Meta(description="The database: a file or a URL.")] = FEEDBACK,
    test_share: Annotated[Share, Meta(description="Share of users whose feedback is kept for tests.")] = 0.1,
    json: Json = False,
) -> None:
    """Write what people said as rows to train on.

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
