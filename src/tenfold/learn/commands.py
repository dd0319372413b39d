"""Tune a model on what people say, judge it, and put it in service."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta, Struct

from tenfold.learn.tune import TuneSettings
from tenfold.spec.commands import Folder, Home, Json, print_json
from tenfold.spec.errors import TenfoldError
from tenfold.spec.ranges import Text

Name = Annotated[str, Meta(pattern=r"^[\w][\w. -]*$", max_length=200, extra={"words": "a name of letters, digits and - . _"})]
Generation = Annotated[Folder, Meta(description="The generation's directory.")]


class ServerOptions(Struct, frozen=True):
    """The running server that takes a release on."""

    server: Annotated[str, Meta(description="Its address, as http://127.0.0.1:8000; without one only the home is changed.")] = ""
    key: Annotated[str, Meta(description="The key of an operator, where the server has keys.")] = ""


def sft(
    model: Annotated[Path, Meta(description="The model to begin from: a generation, a Hugging Face directory or a GGUF file.")],
    /,
    *,
    data: Annotated[Text, Meta(description="JSON lines of chats, a feedback database, or its SQLite file.")],
    settings: TuneSettings = TuneSettings(),
    home: Home = Path("generations"),
    name: Annotated[Name, Meta(description="The name of the new generation.")] = "sft",
    json: Json = False,
) -> None:
    """Fine-tune a model on chats; users or prompts are held out for the gate.

    Example: tenfold learn sft generations/g1 --data feedback.db --name chat-1 --steps 200
    """
    from tenfold.learn.tune import tune
    from tenfold.serve.options import model_path

    result = tune(model_path(model), data, home / name, settings, quiet=json)
    if not result.finished:
        raise TenfoldError(f"Stopped and saved at step {result.step}: the same command goes on from there.")
    if json:
        print_json(asdict(result))
    else:
        print(f"{home / name}: {result.loss:.4f} nats per token of the validation answers after {result.step} steps.")


def gate(
    new: Generation,
    /,
    *,
    against: Annotated[Path, Meta(description="The model that it has to do better than.")],
    home: Home = Path("generations"),
    json: Json = False,
) -> None:
    """Judge a generation on prompts that it has not learned, beside the one before, and write its gate.json.

    Example: tenfold learn gate generations/chat-1 --against generations/g1
    """
    from tenfold.learn.gate import gate as judge

    judged = judge(new, against, home)
    if json:
        print_json(judged)
    else:
        print(f"{'Passed' if judged['passed'] else 'Refused'}: {judged['reason']}")


def release(
    new: Generation, /, *, home: Home = Path("generations"), server: ServerOptions = ServerOptions(), json: Json = False
) -> None:
    """Put a generation that has passed its gate in service.

    Example: tenfold learn release generations/chat-1 --server http://127.0.0.1:8000
    """
    from tenfold.learn.release import release as put_in_service

    _tell(put_in_service(new, home), server, json)


def rollback(*, home: Home = Path("generations"), server: ServerOptions = ServerOptions(), json: Json = False) -> None:
    """Put the generation before in service again.

    Example: tenfold learn rollback --server http://127.0.0.1:8000
    """
    from tenfold.learn.release import rollback as go_back

    _tell(go_back(home), server, json)


def _tell(now: dict[str, Any], server: ServerOptions, json: bool) -> None:
    """Let the server take what is in service, and say what that is."""
    from tenfold.learn.release import swap

    if server.server:
        swap(server.server, Path(now["path"]), server.key)
    if json:
        print_json(now)
    else:
        print(f"In service: {now['path']}" + (f", at {server.server}." if server.server else "."))
