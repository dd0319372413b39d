"""Commands that put generations in service, try them on a share of the users, and go back."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from msgspec import Meta, Struct

from tenfold.learn.commands import Generation
from tenfold.spec.commands import Home, Json, print_json
from tenfold.spec.ranges import Text

if TYPE_CHECKING:
    from tenfold.learn.release import Server


class RunningServer(Struct, frozen=True):
    """The running server on which the release takes effect."""

    server: Annotated[
        str, Meta(description="Address of the server, e.g. http://127.0.0.1:8000; by default only the home is changed.")
    ] = ""
    key: Annotated[str, Meta(description="API key of an operator, where the server has keys.")] = ""

    @property
    def opened(self) -> "Server | None":
        from tenfold.learn.release import Server

        return Server(self.server, self.key) if self.server else None


def release(
    new: Generation,
    /,
    *,
    share: Annotated[
        float, Meta(gt=0, le=1, description="Share of the users that it answers as a candidate; 1 puts it in service for all.")
    ] = 1.0,
    home: Home = Path("generations"),
    server: RunningServer = RunningServer(),
    json: Json = False,
) -> None:
    """Put a generation that has passed its gate in service, for all users or for a share of them.

    Examples:

      tenfold learn release generations/chat-1 --server http://127.0.0.1:8000 --share 0.1    # try it

      tenfold learn release generations/chat-1 --server http://127.0.0.1:8000                # promote it
    """
    from tenfold.learn.release import release as put_in_service

    _tell(put_in_service(new, home, share, server.opened), server, json)


def rollback(*, home: Home = Path("generations"), server: RunningServer = RunningServer(), json: Json = False) -> None:
    """End the trial of a candidate; where there is none, put the generation before in service again.

    Example: tenfold learn rollback --server http://127.0.0.1:8000
    """
    from tenfold.learn.release import rollback as go_back

    _tell(go_back(home, server.opened), server, json)


def trial(
    *,
    feedback: Annotated[Text, Meta(description="The feedback database (URL), or its SQLite file.")] = "feedback.db",
    decide: Annotated[bool, Meta(description="Promote the candidate if it is better, and end its trial if it is worse.")] = False,
    home: Home = Path("generations"),
    server: RunningServer = RunningServer(),
    json: Json = False,
) -> None:
    """Compare the thumbs of the users who got the candidate with those of the others. The result is valid at any time.

    Example: tenfold learn trial --decide --server http://127.0.0.1:8000
    """
    from tenfold.learn.release import release as put_in_service
    from tenfold.learn.release import rollback as go_back
    from tenfold.learn.trial import trial as look

    found = look(home, feedback)
    if decide and found["verdict"] == "better":
        put_in_service(Path(found["candidate_path"]), home, server=server.opened)
    elif decide and found["verdict"] == "worse":
        go_back(home, server.opened)
    if json:
        print_json(found)
        return
    for which in ("candidate", "released"):
        arm, (low, high) = found[which], found[which]["liked_interval"]
        print(
            f"{which}: {arm['liked']:.0%} liked (95 %: {low:.0%} to {high:.0%}) by {arm['users']} users, {found[which + '_path']}"
        )
    low, high = found["wins_interval"]
    print(f"{found['wins']} wins and {found['losses']} losses of the candidate; chance of a win {low:.0%} to {high:.0%} (95 %)")
    print(f"The candidate is {found['verdict']} (p {found['p']:.2g}, valid at any time).")


def _tell(now: dict[str, Any], server: RunningServer, json: bool) -> None:
    """Say what is in service."""
    if json:
        print_json(now)
        return
    at = f", at {server.server}" if server.server else ""
    print(f"In service: {now['path']}{at}.")
    if (candidate := now.get("candidate")) is not None:
        print(f"{candidate['share']:.0%} of the users get {candidate['path']}.")
