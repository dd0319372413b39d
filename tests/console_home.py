"""A small home of two generations, written by the project's own functions, a console over it, and pages in a real Chromium."""

import json
import math
import socket
import sqlite3
import threading
import time
from contextlib import closing, contextmanager

import pytest
import uvicorn
from chat_page import CHROMIUM, needs_chromium

from tenfold.console.app import make_app
from tenfold.console.document import figures_in
from tenfold.console.options import ConsoleOptions
from tenfold.console.site import all_views
from tenfold.console.site import documents as all_documents
from tenfold.plan.commands import MachineOptions
from tenfold.plan.costs.consequences import consequences
from tenfold.plan.costs.site_options import SiteOptions
from tenfold.plan.document import document
from tenfold.plan.plan import solve
from tenfold.plan.request import GpuRequest, Request, StepRequest
from tenfold.scale import documents
from tenfold.scale.forecast import Speed, make_forecast, record_forecast, record_outcome, score, write_forecast
from tenfold.scale.generations import write_points
from tenfold.scale.law import BITS_PER_BYTE, fit_law
from tenfold.scale.points import Point
from tenfold.serve.feedback.feedback import Feedback
from tenfold.spec.files import file_sha256, write_json
from tenfold.train.metrics import MetricsWriter

__all__ = ["CHROMIUM", "needs_chromium"]
TOP = 2e11  # FLOPs of the largest rung of the first generation


def loss_of(params, tokens):
    """The world that is measured: Chinchilla's form."""
    return 0.9 + 30 * params**-0.35 + 300 * tokens**-0.45


def climb(home, name, top, parent=None, *, finished=True):
    """A generation at ten times the compute of its ladder's top, with the files that a climb writes."""
    folder = home / name
    settings = {"corpus": "stdlib", "top_flops": 10 * top, "family": "llama3", "parent": parent, "created": 1.0}
    documents.write(folder / "climb.json", settings)
    budgets = [top / 4, top / 2, top]
    points = [
        Point(n, c / 6 / n, c, loss_of(n, c / 6 / n) * (1 + 0.003 * math.sin(n))) for c in budgets for n in (4e4, 6e4, 9e4, 13e4)
    ]
    write_points(points, folder)
    law = fit_law(points, asymptote=BITS_PER_BYTE)
    write_json(folder / "law.json", law.to_dict())
    params, tokens, _ = law.optimum(10 * top)
    speed = Speed([0.1, 0.11, 0.1], 1000, 4.0, "estimated")
    forecast = make_forecast(law, flops=10 * top, params=round(params), tokens=round(tokens), width=64, speed=speed)
    frozen = write_forecast(forecast, folder / "forecast.json")
    record_forecast(folder)
    run(folder, frozen, forecast, finished=finished)
    if finished:
        scored = score(folder)
        documents.write(folder / "score.json", scored)
        record_outcome(folder, scored["scores"])
    return folder


def run(folder, frozen, forecast, *, finished):
    """The record of the generation's run."""
    loss = loss_of(forecast["params"], forecast["tokens"])
    with MetricsWriter(folder) as metrics:
        metrics.write("start", version=2, tokens_planned=forecast["tokens"], forecast_sha256=frozen)
        for step in range(1, 40):
            metrics.write("step", step=step, loss=loss * (1 + 1 / step), tokens_per_s=9700.0, tokens=1000 * step)
        if finished:
            end = {"loss": loss, "bits_per_byte": loss, "tokens_per_s": 9650.0, "seconds": 12.5, "energy_kwh": 1.5e-5}
            metrics.write("end", step=40, finished=True, **end)


def plan_next(home, flops):
    """The plan of the next times ten on one GPU."""
    plan = solve(Request(flops=flops), GpuRequest(gpus=1), MachineOptions().machine(home)[0], StepRequest(seq_len=128), home)
    write_json(home / "plan" / "plan.json", document(plan.workload, consequences(plan.workload, SiteOptions())))


def judged(folder, *, passed):
    """A gate's word, as `tenfold learn gate` writes it."""
    says = "chat-1 finds the right answers likelier." if passed else "chat-1 is not better beyond noise."
    check = {"name": "better", "passed": passed, "says": says, "measured": -3.5 if passed else 1.25, "limit": 0}
    write_json(folder / "gate.json", {"version": 1, "passed": passed, "reason": says, "checks": [check]})


def tuned(home, name, begun):
    """A generation that was tuned on feedback."""
    Feedback(f"sqlite:///{home / 'feedback.db'}")
    folder = home / name
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "train.jsonl").write_text('{"said": "something personal"}\n')
    made = {"init_from": {"path": str(home / begun / "model")}, "source": str(home / "feedback.db"), "people": {}}
    write_json(folder / "lineage.json", {"version": 1, **made})
    judged(folder, passed=True)


def build(home):
    """The home of all tests: two climbs, the second begun from the first, a tuned generation, a plan, a circle."""
    climb(home, "g1", TOP)
    climb(home, "g2", 10 * TOP, "g1")
    tuned(home, "chat-1", "g2")
    plan_next(home, 1e3 * TOP)
    hashed = file_sha256(home / "g1" / "forecast.json")
    done = {
        "numbers": {"loss_error_pct": 0.25, "served": {"p50": 0.125}, "hash": hashed},
        "files": ["g2/score.json", "feedback.db"],
    }
    rooms = {"climb": done, "sites": {"skipped": "The package highspy is not installed."}}
    write_json(home / "circle.json", {"version": 1, "rooms": rooms})
    (home / "worth.csv").write_text("loss,value\n3,0\n2,1\n1,5\n0.9,9\n")
    return home


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    return build(tmp_path_factory.mktemp("console") / "generations")


@contextmanager
def console(home, **options):
    """The address of a console over a home, as a real server in a thread."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    app = make_app(ConsoleOptions(home=home, port=port, **options))
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        end = time.monotonic() + 60
        while not server.started:
            assert time.monotonic() < end
            time.sleep(0.02)
        yield f"http://127.0.0.1:{port}/"
    finally:
        server.should_exit = True
        thread.join(120)
        assert not thread.is_alive(), "the console does not end"


@pytest.fixture(scope="module")
def address(home):
    with console(home) as url:
        yield url


@contextmanager
def opened(browser, url, *, width=1280, scheme="light", ready="main[data-shown]", strict=True):
    """A page that has shown its view; an error of its scripts, or a word of the browser, fails a strict test."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    page.set_default_timeout(120_000)
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.goto(url)
    page.wait_for_selector(ready)
    yield page
    context.close()
    assert not (strict and errors), errors


def parsed(path, key):
    """What stands under a figure's key, found by other means than the console's: one line, row or object at a time."""
    if path.suffix == ".csv":
        line, column = key.split(":")
        rows = [row.split(",") for row in path.read_text().splitlines()]
        return float(rows[int(line) - 1][rows[0].index(column)])
    if path.suffix == ".db":
        table, number, column = key.split(".")
        with closing(sqlite3.connect(path)) as database:
            return database.execute(f"SELECT {column} FROM {table} WHERE id = {int(number)}").fetchone()[0]
    line, colon, rest = key.partition(":")
    found = json.loads(path.read_text().splitlines()[int(line) - 1] if colon else path.read_text())
    return inner(found, rest if colon else key)


def inner(found, key):
    """What stands under dotted names, of which some have dots themselves."""
    if not key:
        return found
    names = found if isinstance(found, dict) else {str(i): value for i, value in enumerate(found)}
    fitting = [name for name in names if key == name or key.startswith(f"{name}.")]
    return inner(names[max(fitting, key=len)], key[len(max(fitting, key=len)) + 1 :])


def check_figures(home):
    """Compare every figure of every document of all views with its file; returns how many there are."""
    count = 0
    for view, name, made in all_documents(all_views(), home, private=True):
        for one in figures_in(made):
            assert parsed(home / one.file, one.key) == one.value, (view.name, name, one)
            count += 1
    return count


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]
