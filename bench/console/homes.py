"""Homes for benchmarks of the console, in the format that climbs write, and a console that serves one."""

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from bench.harness import TENFOLD
from tenfold.scale import documents
from tenfold.scale.forecast import Speed, make_forecast, record_forecast, record_outcome, score, write_forecast
from tenfold.scale.generations import write_points
from tenfold.scale.law import BITS_PER_BYTE, fit_law
from tenfold.scale.points import Point
from tenfold.spec.files import make_folder, write_json
from tenfold.train.metrics import MetricsWriter

START_S = 300.0
STEPS = 100  # of a run


def loss_of(params: float, tokens: float) -> float:
    """The true loss of a made-up model, in bits per byte; Chinchilla's form."""
    return 0.9 + 30 * params**-0.35 + 300 * tokens**-0.45


def make_home(home: Path, generations: int) -> Path:
    """Write a home with this number of scored generations, each with a ladder of twelve runs; all have the same law."""
    points = [Point(n, c / 6 / n, c, loss_of(n, c / 6 / n)) for c in (5e10, 1e11, 2e11) for n in (4e4, 6e4, 9e4, 13e4)]
    law = fit_law(points, asymptote=BITS_PER_BYTE)
    for number in range(1, generations + 1):
        folder, flops = make_folder(home / f"g{number}"), 2e12 * (1 + number / generations)
        parent = f"g{number - 1}" if number > 1 else None
        documents.write(folder / "climb.json", {"corpus": "stdlib", "top_flops": flops, "family": "llama3", "parent": parent})
        write_points([Point(p.params, p.tokens, p.flops, p.loss * (1 + number / 1e4)) for p in points], folder)
        write_json(folder / "law.json", law.to_dict())
        params, tokens = flops**0.5 / 10, flops**0.5 / 0.6
        speed = Speed([0.1, 0.11, 0.1], 1000, 4.0, "estimated")
        made = make_forecast(law, flops=flops, params=round(params), tokens=round(tokens), width=64, speed=speed)
        frozen = write_forecast(made, folder / "forecast.json")
        record_forecast(folder)
        _write_run(folder, frozen, loss_of(params, tokens))
        scored = score(folder)
        documents.write(folder / "score.json", scored)
        record_outcome(folder, scored["scores"])
    return home


def _write_run(folder: Path, frozen: str, loss: float) -> None:
    with MetricsWriter(folder) as metrics:
        metrics.write("start", version=2, tokens_planned=1000 * STEPS, forecast_sha256=frozen)
        for step in range(1, STEPS):
            metrics.write(
                "step", step=step, loss=loss * (1 + 1 / step), tokens_per_s=9700.0, tokens=1000 * step, learning_rate=1e-3
            )
        end = {"bits_per_byte": loss, "tokens_per_s": 9650.0, "seconds": 12.5, "energy_kwh": 1.5e-5}
        metrics.write("end", step=STEPS, finished=True, loss=loss, **end)


@contextmanager
def console(home: Path) -> Iterator[tuple[str, int]]:
    """Run a console over a home; its address and its process id."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}/"
    running = subprocess.Popen([*TENFOLD, "console", "--home", str(home), "--port", str(port)], stdout=subprocess.DEVNULL)
    try:
        _until_it_answers(address)
        yield address, running.pid
    finally:
        running.terminate()
        running.wait()


def _until_it_answers(address: str) -> None:
    end = time.monotonic() + START_S
    while True:
        try:
            urlopen(address, timeout=10).close()
            return
        except URLError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)
