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
    """Options of the engine of one model."""

    path: Annotated[Path, Meta(description="A Hugging Face directory or a GGUF file.")]
    quantization: Annotated[
        Quantization, Meta(description="Format of the weights; exact is the smallest that changes no weight.")
    ] = "exact"
    adapter: Annotated[Path | None, Meta(description="Folder of a PEFT LoRA adapter that all requests use, unmerged.")] = None
    lora_modules: Annotated[
        tuple[str, ...], Meta(description="A LoRA adapter as NAME=FOLDER; requests select it with NAME as their model. Repeatable.")
    ] = ()
    max_model_len: Annotated[
        CountOrNone, Meta(description="Most tokens of a prompt and its answer together; 0 is the model's own limit.")
    ] = 0
    kv_cache_gib: Annotated[Gib, Meta(description="Memory for the KV cache, in GiB.")] = 1.0
    max_num_batched_tokens: Annotated[
        CountOrNone, Meta(description="Most tokens computed in one step; 0 is the device's default.")
    ] = 0
    max_num_seqs: Annotated[Count, Meta(description="Most sequences computed in one step.")] = 64
    threads: Annotated[Threads, Meta(description="CPU threads; 0 is one for each core.")] = 0
    speculate: Annotated[
        bool, Meta(description="Speculative decoding: guess tokens from the text so far, and check them in one step.")
    ] = True
    draft_model: Annotated[
        Path | None, Meta(description="A smaller model with the same vocabulary that makes the guesses instead.")
    ] = None
    enforce_eager: Annotated[bool, Meta(description="Compute with PyTorch's operations, without compiled kernels.")] = False
    device: Annotated[Text, Meta(description="auto, cpu, cuda, cuda:N, or an accelerator of a plugin.")] = "cpu"
    backend: Annotated[Text, Meta(description="Engine to use: tenfold, llamacpp (GGUF files), vllm, or a plugin's backend.")] = (
        "tenfold"
    )

    def of(self, path: Path) -> "EngineOptions":
        """The same options for the model at `path`, without the adapters, which belong to this one."""
        return replace(self, path=path, adapter=None, lora_modules=())

    def adapters(self) -> dict[str, Path]:
        """The adapters' folders by name. Raises TenfoldError for a value that is not NAME=FOLDER, and for a name given twice."""
        split = [given.partition("=")[::2] for given in self.lora_modules]
        for given, (name, folder) in zip(self.lora_modules, split, strict=True):
            if not (name and folder):
                raise TenfoldError(f"--lora-modules takes NAME=FOLDER, not {given!r}.")
        if len({name for name, _ in split}) < len(split):
            raise TenfoldError(f"Two of the adapters {', '.join(self.lora_modules)} have the same name: rename one.")
        return {name: Path(folder) for name, folder in split}


class Limits(Struct, frozen=True):
    """Limits on what a server accepts and keeps in memory."""

    max_queue: Annotated[Count, Meta(description="Most unfinished answers of a model; further requests get status 429.")] = 512
    key_share: Annotated[
        Share, Meta(description="Largest share, 0 to 1, of the queue and of each memory limit for one API key.")
    ] = 0.5
    max_loaded: Annotated[Count, Meta(description="Most models in memory; the least recently used is unloaded first.")] = 1
    timeout_seconds: Annotated[Timeout, Meta(description="Most seconds for an answer; after that it gets status 504.")] = 600.0
    max_body_bytes: Annotated[Count, Meta(description="Most bytes of a request's body; more get status 413.")] = 16 * 2**20
    max_in_flight_bytes: Annotated[
        Count, Meta(description="Most bytes of the bodies of all unanswered requests together; more get status 429.")
    ] = 128 * 2**20
    max_images: Annotated[Count, Meta(description="Most images in one request.")] = 8
    max_image_pixels: Annotated[Count, Meta(description="Most pixels of an image as it is sent; more get status 400.")] = 2**24
    max_image_bytes: Annotated[
        Count, Meta(description="Most bytes of the image tiles of all unanswered requests together; more get status 429.")
    ] = 512 * 2**20
    max_stored_bytes: Annotated[Count, Meta(description="Most bytes of responses in memory; above it the oldest are deleted.")] = (
        256 * 2**20
    )
    idle_seconds: Annotated[
        Seconds, Meta(description="Seconds since its last request after which a model with nothing to answer counts as idle.")
    ] = 1.0
    patience_seconds: Annotated[
        Seconds, Meta(description="Seconds that a load waits for a model to be idle before a busy one takes no new requests.")
    ] = 10.0


class ConnectionLimits(Struct, frozen=True):
    """Limits of HTTP connections. Times are in seconds."""

    max_connections: Annotated[
        Count, Meta(description="Most open connections, if file descriptors suffice; the longest idle is closed first.")
    ] = 1024
    idle_timeout: Annotated[
        Timeout, Meta(description="Seconds within which the headers of the next request must have arrived.")
    ] = 30.0
    body_timeout: Annotated[Timeout, Meta(description="Seconds within which a request's body must have arrived.")] = 120.0
    stalled_timeout: Annotated[Timeout, Meta(description="Seconds for which a client may stop reading its answer.")] = 60.0


class ServerOptions(Struct, frozen=True):
    """Options of a server that do not belong to a model's engine."""

    host: Annotated[Text, Meta(description="Address to listen on; any but loopback needs --keys.")] = "127.0.0.1"
    port: Annotated[Port, Meta(description="Port to listen on.")] = 8000
    limits: Limits = Limits()
    connections: ConnectionLimits = ConnectionLimits()
    keys: Annotated[File | None, Meta(description="File of API keys, made with `tenfold serve-key`.")] = None
    requests_per_minute: Annotated[CountOrNone, Meta(description="Most requests per minute of each API key; 0 is no limit.")] = 0
    metrics: Annotated[Literal["everyone", "operators"], Meta(description="Who may read /metrics if the server has keys.")] = (
        "everyone"
    )
    access_log: Annotated[Literal["none", "text", "json"], Meta(description="Form of each request's log line on stderr.")] = "text"
    otlp_traces_endpoint: Annotated[
        str, Meta(description="URL of an OpenTelemetry collector, such as http://127.0.0.1:4318/v1/traces; '' is none.")
    ] = ""
    feedback: Annotated[str, Meta(description="Database of stored answers and feedback, a file or a URL; '' is none.")] = ""
    events: Annotated[str, Meta(description="Database of shown lists and events (ranking), a file or a URL; '' is none.")] = ""
    feedback_per_day: Annotated[CountOrNone, Meta(description="Most feedback requests of each API key a day; 0 is no limit.")] = 200
    any_name: Annotated[bool, Meta(description="Answer requests for unknown model names with the first model.")] = False
    allowed_hosts: Annotated[
        tuple[str, ...], Meta(description="Host names to answer to, besides localhost and its address; '*' is all.")
    ] = ()
    allowed_origins: Annotated[tuple[str, ...], Meta(description="Origins of other web pages that may use the API (CORS).")] = ()
    drain_seconds: Annotated[Seconds, Meta(description="Seconds that SIGTERM waits for unfinished answers.")] = 60.0


def model_name(path: Path) -> str:
    """The name under which the model at `path` is served."""
    return path.parent.name if path.name == "model" else path.stem if path.suffix == ".gguf" else path.resolve().name


def name_models(paths: Sequence[Path]) -> dict[str, Path]:
    """Models by name. Equal names get as many parent folders in front as tell them apart.

    Raises TenfoldError if a model is given twice.
    """
    names = [model_name(path) for path in paths]
    folders = [(path.parent if path.name == "model" else path).resolve().parts for path in paths]
    for n in range(2, max(map(len, folders))):
        longer = [f"{parts[-n]}/{name}" if n < len(parts) else name for name, parts in zip(names, folders, strict=True)]
        names = [long if names.count(name) > 1 else name for name, long in zip(names, longer, strict=True)]
    if len(set(names)) < len(names):
        raise TenfoldError(f"Two of {', '.join(map(str, paths))} have the same name: give each model once, or rename one.")
    return dict(zip(names, paths, strict=True))
