"""The console's first view over many generations, in headless Chromium: transfer, first paint, and an audit as Lighthouse does it.

    python -m bench.console.first_view

Each round opens a fresh browser context twice: once without limits (first paint, the ladder drawn, bytes sent), once with the
network of Lighthouse's desktop preset (40 ms, 10 Mbit/s). From the second the performance score is computed with Lighthouse 12's
curves and weights. The speed index, which needs a film of the page, is left out and its weight is spread over the others.
Accessibility is tested by axe, the library that Lighthouse uses too.
"""

import math
import shutil
import tempfile
from importlib import resources
from pathlib import Path
from statistics import NormalDist, median
from typing import Any

from playwright.sync_api import Browser, sync_playwright

from bench.console.homes import console, make_home
from bench.harness import Row, options, write_results
from tenfold.spec.threads import busy_share

DESKTOP = {"offline": False, "latency": 40, "downloadThroughput": 10 * 1024 * 1024 / 8, "uploadThroughput": 10 * 1024 * 1024 / 8}
# For each metric the value with score 0.9, the value with score 0.5 (milliseconds; cls has no unit), and its weight.
CURVES = {"fcp": (934, 1600, 10), "lcp": (1200, 2400, 25), "tbt": (150, 350, 30), "cls": (0.1, 0.25, 25)}
OBSERVE = """
window.seen = { lcp: 0, cls: 0, tasks: [] };
const observe = (type, each) => new PerformanceObserver(list => list.getEntries().forEach(each)).observe({ type, buffered: true });
observe("largest-contentful-paint", entry => { seen.lcp = entry.startTime; });
observe("layout-shift", entry => { if (!entry.hadRecentInput) seen.cls += entry.value; });
observe("longtask", entry => { seen.tasks.push([entry.startTime, entry.duration]); });
"""
FOUND = """() => {
  const fcp = performance.getEntriesByName("first-contentful-paint")[0].startTime;
  const tbt = seen.tasks.filter(([at]) => at >= fcp).reduce((sum, [, long]) => sum + Math.max(0, long - 50), 0);
  return { fcp, lcp: seen.lcp, cls: seen.cls, tbt, drawn: performance.now() };
}"""
DRAWN = "main[data-shown] .uplot canvas"


def view(browser: Browser, address: str, network: dict[str, Any] | None) -> dict[str, float]:
    """One opening of the page in a fresh context: times in ms from its beginning, and `bytes` over the wire, with headers."""
    context = browser.new_context(viewport={"width": 1350, "height": 940})
    page = context.new_page()
    page.set_default_timeout(120_000)
    page.add_init_script(OBSERVE)
    session, received = context.new_cdp_session(page), []
    session.on("Network.loadingFinished", lambda event: received.append(event["encodedDataLength"]))
    session.send("Network.enable")
    if network:
        session.send("Network.emulateNetworkConditions", network)
    page.goto(address)
    page.wait_for_selector(DRAWN)
    found = page.evaluate(FOUND)
    page.wait_for_timeout(500)  # for requests that end after the picture is drawn
    found["bytes"] = sum(received)
    context.close()
    return found


def performance(found: dict[str, float]) -> float:
    """Lighthouse's score, 0 to 100, without the speed index."""
    score = 0.0
    for name, (good, middle, weight) in CURVES.items():
        spread = math.log(middle / good) / NormalDist().inv_cdf(0.9)
        value = max(found[name], 1e-9)
        score += weight * (1 - NormalDist(math.log(middle), spread).cdf(math.log(value)))
    return 100 * score / sum(weight for *_, weight in CURVES.values())


def violations(browser: Browser, address: str) -> int:
    """The number of axe rules that the first view violates, in the light and in the dark theme together."""
    axe = resources.files("axe_playwright_python").joinpath("axe.min.js").read_text()
    found = 0
    for scheme in ("light", "dark"):
        page = browser.new_page(color_scheme=scheme)
        page.set_default_timeout(120_000)
        page.goto(address)
        page.wait_for_selector(DRAWN)
        page.evaluate(axe)
        found += page.evaluate("axe.run().then(result => result.violations.length)")
        page.close()
    return found


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--generations", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with (
        tempfile.TemporaryDirectory() as folder,
        console(make_home(Path(folder) / "generations", asked.generations)) as (address, _),
    ):
        with (
            sync_playwright() as playwright,
            playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"]) as browser,
        ):
            view(browser, address, None)  # warms up the server
            plain = [view(browser, address, None) for _ in range(asked.rounds)]
            slow = [view(browser, address, DESKTOP) for _ in range(asked.rounds)]
            broken = violations(browser, address)
        busy = busy_share(1.0)

    def middle(rows: list[dict[str, float]], name: str) -> float:
        return median(row[name] for row in rows)

    row: Row = {
        "generations": asked.generations,
        "rounds": asked.rounds,
        "transfer_kb": middle(plain, "bytes") / 1000,
        "first_paint_s": middle(plain, "fcp") / 1000,
        "drawn_s": middle(plain, "drawn") / 1000,
        **{f"audit_{name}": middle(slow, name) for name in CURVES},
        "performance": performance({name: middle(slow, name) for name in CURVES}),
        "axe_violations": broken,
        "others_share_of_cores": busy,
    }
    headline = [
        (
            f"console, first view of {asked.generations} generations",
            f"{row['transfer_kb']:.0f} kB, painted in {row['first_paint_s']:.2f} s",
        ),
        ("console, audit as Lighthouse's: performance", f"{row['performance']:.0f}; axe: {broken} violations"),
    ]
    print(write_results("console_first_view", [row], headline))
    print(row)


if __name__ == "__main__":
    main()
