"""The HTML report of a climb: the forecast and the measured result, plots, back-tests, and a sample of the model's text."""

import base64
import json
from importlib import resources
from pathlib import Path

import jinja2

from tenfold.scale import documents
from tenfold.scale.backtest import rung_by_rung
from tenfold.scale.beside import comparison, other_family
from tenfold.scale.generations import read_points_file, read_settings
from tenfold.scale.law import BITS_PER_BYTE, Law
from tenfold.scale.plots import draw_climb, draw_run
from tenfold.spec.files import write_text
from tenfold.train.metrics import read_metrics

LABELS = {
    "loss_bits_per_byte": "loss (bits per byte)",
    "tokens_per_s": "speed (tokens/s)",
    "seconds": "training time (s)",
    "energy_kwh": "energy (kWh)",
}


def write_report(generation: Path, sample: str = "") -> Path:
    """Write `report.html`, `climb.png` and `run.png` into a scored generation of text; returns the page's path."""
    points = read_points_file(generation)
    law = Law.from_dict(json.loads((generation / "law.json").read_text()))
    forecast = documents.read(generation / "forecast.json")
    events = read_metrics(generation / "run.jsonl")
    start = next(e for e in events if e["event"] == "start")
    end = next(e for e in reversed(events) if e["event"] == "end")
    draw_climb(points, law, forecast, end, generation / "climb.png")
    draw_run(events, generation / "run.png")
    template = resources.files("tenfold.scale").joinpath("report.html.jinja").read_text()
    page = jinja2.Environment(autoescape=True).from_string(template)
    tests = [{**t.summary(), "flops": max(p.flops for p in t.predictions)} for t in rung_by_rung(points, asymptote=BITS_PER_BYTE)]
    other = other_family(generation)
    path = generation / "report.html"
    write_text(
        path,
        page.render(
            name=generation.name,
            settings=read_settings(generation),
            forecast=forecast,
            scores=documents.read(generation / "score.json")["scores"],
            labels=LABELS,
            start=start,
            end=end,
            backtests=tests,
            beside=comparison(generation, other) if other else None,
            sample=sample,
            climb_png=base64.b64encode((generation / "climb.png").read_bytes()).decode(),
            run_png=base64.b64encode((generation / "run.png").read_bytes()).decode(),
        ),
    )
    return path
