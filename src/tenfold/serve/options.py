"""The options of a server and of the engines behind it; `tenfold serve` and `tenfold chat` take theirs from here."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, Struct
from msgspec.structs import replace

from tenfold.spec.commands import File
from tenfold.spec.errors import TenfoldError
from tenfold.spec.ranges import Count, CountOrNone, Port, Seconds, Share, Text

Gib = Annotated[float, Meta(gt=0, le=1e6)]
Threads = Annotated[int, Meta(ge=0, le=4096)]
Timeout = Annotated[float, Meta(gt=0, le=1e9)]
Quantization = Literal["exact", "float32", "bfloat16", "int8", "int4"]


class EngineOptions(Struct, frozen=True):
    """How one model is served."""

    path: Annotated[Path, Meta(description="A Hugging Face directory or a GGUF file.")]
    quantization: Annotated[
        Quantization, Meta(description="Format of the weights; exact is the smallest that changes no weight.")
    ] = "exact"
    adapter: Annotated[Path | None, Meta(description="A folder of PEFT's with adapters, which are not merged (LoRA).")] = None
    lora_modules: Annotated[
        tuple[str, ...], Meta(description="An adapter as NAME=FOLDER, which requests name in place of the model; once for each.")
    ] = ()
    max_model_len: Annotated[
        CountOrNone, Meta(description="Longest prompt and answer together, in tokens; 0 is the model's own limit.")
    ] = 0
    kv_cache_gib: Annotated[Gib, Meta(description="Memory for keys and values, in GiB.")] = 1.0
    max_num_batched_tokens: Annotated[CountOrNone, Meta(description="Tokens computed in one step; 0 is the device's default.")] = 0
    max_num_seqs: Annotated[Count, Meta(description="Sequences computed at once.")] = 64
    threads: Annotated[Threads, Meta(description="CPU threads; 0 is one for each core.")] = 0
    speculate: Annotated[bool, Meta(description="Guess tokens from the text so far, and check them in the same step.")] = True
    draft_model: Annotated[
        Path | None, Meta(description="A smaller model with the same vocabulary that makes the guesses instead.")
    ] = None
    enforce_eager: Annotated[bool, Meta(description="Compute with PyTorch's own operations, without compiled kernels.")] = False
    device: Annotated[Text, Meta(description="auto, cpu, cuda, cuda:N or an accelerator.")] = "cpu"
    backend: Annotated[
        Text, Meta(description="What computes: tenfold, llamacpp (GGUF files), vllm, or the backend of a plugin.")
    ] = "tenfold"

    def of(self, path: Path) -> "EngineOptions":
        """The same for another model, to which these adapters do not belong."""
        return replace(self, path=path, adapter=None, lora_modules=())

    def adapters(self) -> dict[str, Path]:
        """The folders of the adapters by name. Raises TenfoldError for what is no NAME=FOLDER, and for a name given twice."""
        split = [given.partition("=")[::2] for given in self.lora_modules]
        for given, (name, folder) in zip(self.lora_modules, split, strict=True):
            if not (name and folder):
                raise TenfoldError(f"--lora-modules takes NAME=FOLDER, not {given!r}.")
        if len({name for name, _ in split}) < len(split):
            raise TenfoldError(f"Two of the adapters {', '.join(self.lora_modules)} have the same name: rename one.")
        return {name: Path(folder) for name, folder in split}


class Limits(Struct, frozen=True):
    """What a server takes on."""

    max_queue: Annotated[Count, Meta(description="Unfinished answers of a model before new requests are refused with 429.")] = 512
    key_share: Annotated[
        Share, Meta(description="Largest share of the queue, of bodies under way and of what is remembered, for one key.")
    ] = 0.5
    max_loaded: Annotated[Count, Meta(description="Models kept in memory; the least recently used is unloaded first.")] = 1
    timeout_seconds: Annotated[Timeout, Meta(description="Longest time for an answer; then 504.")] = 600.0
    max_body_bytes: Annotated[Count, Meta(description="Largest request body; then 413.")] = 16 * 2**20
    max_in_flight_bytes: Annotated[
        Count, Meta(description="Bodies of all unanswered requests together; then 429, for one key at its share.")
    ] = 128 * 2**20
    max_stored_bytes: Annotated[Count, Meta(description="Responses kept in memory; then the oldest are forgotten.")] = 256 * 2**20
    idle_seconds: Annotated[
        Seconds, Meta(description="A model counts as idle when its last request came this long ago and nothing is unanswered.")
    ] = 1.0
    patience_seconds: Annotated[
        Seconds, Meta(description="How long a load waits for an idle model to unload before it makes a busy one give way.")
    ] = 10.0


class ConnectionLimits(Struct, frozen=True):
    """What a server grants a connection. Times are in seconds."""

    max_connections: Annotated[
        Count, Meta(description="Connections open at once, where there are as many file descriptors; the longest idle goes first.")
    ] = 1024
    idle_timeout: Annotated[
        Timeout, Meta(description="Seconds until the head of a request, the first or the next, must be whole.")
    ] = 30.0
    body_timeout: Annotated[Timeout, Meta(description="Seconds until the body of a request must be whole.")] = 120.0
    stalled_timeout: Annotated[Timeout, Meta(description="Seconds for which a client may read nothing of what waits for it.")] = (
        60.0
    )


class ServerOptions(Struct, frozen=True):
    """A server apart from its models."""

    host: Annotated[Text, Meta(description="Address to listen on; any but loopback needs keys.")] = "127.0.0.1"
    port: Annotated[Port, Meta(description="Port to listen on.")] = 8000
    limits: Limits = Limits()
    connections: ConnectionLimits = ConnectionLimits()
    keys: Annotated[File | None, Meta(description="File of keys, made with `tenfold serve-key`.")] = None
    requests_per_minute: Annotated[CountOrNone, Meta(description="Limit for each key; 0 is none.")] = 0
    metrics: Annotated[Literal["everyone", "operators"], Meta(description="Who may read /metrics where the server has keys.")] = (
        "everyone"
    )
    access_log: Annotated[Literal["none", "text", "json"], Meta(description="What is written to stderr of each request.")] = "text"
    otlp_traces_endpoint: Annotated[
        str, Meta(description="URL of a collector of OpenTelemetry, such as http://127.0.0.1:4318/v1/traces; '' traces nothing.")
    ] = ""
    feedback: Annotated[str, Meta(description="Database for stored answers and feedback, a file or a URL; '' keeps none.")] = ""
    events: Annotated[str, Meta(description="Database for shown lists and events, a file or a URL; '' keeps none.")] = ""
    feedback_per_day: Annotated[CountOrNone, Meta(description="Judgements taken from each key in a day; 0 is no limit.")] = 200
    any_name: Annotated[bool, Meta(description="Answer to any model name with the first model.")] = False
    allowed_hosts: Annotated[
        tuple[str, ...], Meta(description="Names that the server answers to, besides localhost and its address; '*' is all.")
    ] = ()
    allowed_origins: Annotated[tuple[str, ...], Meta(description="Origins of other web pages that may use the API.")] = ()
    drain_seconds: Annotated[Seconds, Meta(description="How long SIGTERM waits for unfinished answers.")] = 60.0


def model_name(path: Path) -> str:
    """The name under which the model at `path` is served."""
    return path.parent.name if path.name == "model" else path.stem if path.suffix == ".gguf" else path.resolve().name


def name_models(paths: Sequence[Path]) -> dict[str, Path]:
    """Models by name; where names are equal, the folders that tell them apart stand before them."""
    names = [model_name(path) for path in paths]
    folders = [(path.parent if path.name == "model" else path).resolve().parts for path in paths]
    for n in range(2, max(map(len, folders))):
        longer = [f"{parts[-n]}/{name}" if n < len(parts) else name for name, parts in zip(names, folders, strict=True)]
        names = [long if names.count(name) > 1 else name for name, long in zip(names, longer, strict=True)]
    if len(set(names)) < len(names):
        raise TenfoldError(f"Two of {', '.join(map(str, paths))} have the same name: give each model once, or rename one.")
    return dict(zip(names, paths, strict=True))
