"""`tenfold serve`, `tenfold chat`, `tenfold feedback`: answer with a model, and keep what people say of it."""

from pathlib import Path
from typing import Annotated, Any

import typer

from tenfold.cli import AsJson, app, print_json

feedback_app = typer.Typer(help="What people said of answers.", no_args_is_help=True)
app.add_typer(feedback_app, name="feedback")

ModelPath = Annotated[Path, typer.Argument(help="A generation, a Hugging Face directory, or a GGUF file of a Llama.")]
Quantization = Annotated[str, typer.Option(help="exact, float32, bfloat16, int8 or int4; exact changes no weight.")]
KEYS, FEEDBACK = Path("serve-keys.json"), "sqlite:///feedback.db"


def _options(path: Path, **given: Any) -> Any:
    from tenfold.serve.options import EngineOptions, model_path

    return EngineOptions(model_path(path), **given)


@app.command("serve")
def serve(
    model: Annotated[list[Path], typer.Argument(help="Models; the first answers where a request names none.")],
    host: Annotated[str, typer.Option(help="Address to listen on; any but loopback needs keys.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8000,
    quantization: Quantization = "exact",
    max_model_len: Annotated[int, typer.Option(help="Longest prompt and answer together, in tokens; 0 is the model's own.")] = 0,
    kv_cache_gib: Annotated[float, typer.Option(help="Memory for keys and values.")] = 1.0,
    max_num_batched_tokens: Annotated[int, typer.Option(help="Tokens computed in one step; 0 is the device's default.")] = 0,
    max_num_seqs: Annotated[int, typer.Option(help="Sequences computed at once.")] = 64,
    threads: Annotated[int, typer.Option(help="Threads; 0 is one per core.")] = 0,
    speculate: Annotated[bool, typer.Option(help="Guess tokens from the text so far.")] = True,
    draft_model: Annotated[Path | None, typer.Option(help="A smaller model of the same vocabulary that guesses instead.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    backend: Annotated[str, typer.Option(help="What computes: tenfold, llamacpp (GGUF), vllm, or a plugin's.")] = "tenfold",
    max_loaded: Annotated[int, typer.Option(help="Models kept in memory; the least recently used goes first.")] = 1,
    max_queue: Annotated[int, typer.Option(help="Unfinished requests before 429.")] = 256,
    timeout_seconds: Annotated[float, typer.Option(help="Longest that an answer may take; then 504.")] = 600,
    drain_seconds: Annotated[float, typer.Option(help="How long SIGTERM waits for answers that are under way.")] = 60,
    keys: Annotated[Path | None, typer.Option(help="File of keys, made with `tenfold serve-key`.")] = None,
    requests_per_minute: Annotated[int, typer.Option(help="Limit for each key; 0 for none.")] = 0,
    feedback: Annotated[str, typer.Option(help="Database URL for answers and feedback; '' keeps none.")] = FEEDBACK,
    any_name: Annotated[bool, typer.Option(help="Answer to any model name with the first model.")] = False,
    allowed_origins: Annotated[list[str] | None, typer.Option(help="Web pages elsewhere that may ask.")] = None,
) -> None:
    """A chat page at / and an OpenAI-compatible API at /v1.

    Example: tenfold serve generations/g1 --port 8000
    """
    from rich.console import Console

    from tenfold.serve.api.server import serve as run
    from tenfold.serve.options import Limits, ServerOptions, model_name, model_path

    options = {
        model_name(model_path(path)): _options(
            path, quantization=quantization, max_model_len=max_model_len, kv_cache_gib=kv_cache_gib,
            max_num_batched_tokens=max_num_batched_tokens, max_num_seqs=max_num_seqs, threads=threads, speculate=speculate,
            draft_model=draft_model and model_path(draft_model), device=device, backend=backend,
        )
        for path in model
    }  # fmt: skip
    Console().print(f"{', '.join(options)}: chat at http://{host}:{port}/, API at http://{host}:{port}/v1", highlight=False)
    limits = Limits(max_queue=max_queue, max_loaded=max_loaded, timeout_seconds=timeout_seconds)
    server = ServerOptions(
        host, port, limits, keys, requests_per_minute, feedback, any_name, tuple(allowed_origins or ()), drain_seconds
    )
    run(options, server)


@app.command("serve-key")
def serve_key(
    name: Annotated[str, typer.Argument(help="Whose key it is.")],
    file: Annotated[Path, typer.Option(help="Where hashes of keys are kept.")] = KEYS,
) -> None:
    """Make a key for `tenfold serve --keys`; it is shown once and kept as a hash.

    Example: tenfold serve-key alice
    """
    from tenfold.serve.api.keys import make_key

    print(make_key(file, name))


@app.command("chat")
def chat(
    model: ModelPath,
    quantization: Quantization = "exact",
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token every time.")] = 0.7,
    top_p: Annotated[float, typer.Option(help="Draw from the likeliest tokens that hold this share.")] = 0.95,
    max_tokens: Annotated[int, typer.Option(help="Longest answer.")] = 512,
    system: Annotated[str, typer.Option(help="What the model is told before the conversation.")] = "",
) -> None:
    """Talk with a model in the terminal; an empty line ends it.

    Example: tenfold chat generations/g1
    """
    from tenfold.serve.terminal import converse

    converse(_options(model, quantization=quantization, kv_cache_gib=0.5), temperature, top_p, max_tokens, system)


@feedback_app.command("export")
def export(
    out: Annotated[Path, typer.Argument(help="File to write; the test part goes to NAME.test.jsonl beside it.")],
    format: Annotated[str, typer.Option(help="dpo, kto or sft, as TRL reads them.")] = "dpo",
    database: Annotated[str, typer.Option(help="Database URL.")] = FEEDBACK,
    test_share: Annotated[float, typer.Option(help="Share of users whose feedback is kept for tests.")] = 0.1,
    as_json: AsJson = False,
) -> None:
    """Write what people said as rows to train on.

    Example: tenfold feedback export --format kto thumbs.jsonl
    """
    from tenfold.serve.feedback.export import export as write
    from tenfold.serve.feedback.feedback import Feedback

    made = write(Feedback(database), format, out, test_share=test_share)
    if as_json:
        print_json({"train": made.train, "test": made.test, "left_out": dict(made.left_out)})
        return
    print(f"{made.train} rows in {out}, {made.test} of other users in {out.with_suffix('.test.jsonl')}.")
    for reason, count in made.left_out.most_common():
        print(f"  left out: {count} ({reason})")
