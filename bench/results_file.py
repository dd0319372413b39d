"""How every benchmark keeps its results: one JSON file with the machine, the date, the versions, the command."""

import json
import os
import platform
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def machine() -> str:
    """The processor's name, its cores and memory, in words."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        name = lines[0].split(":", 1)[1].strip() if lines else name
        flags = cpuinfo.read_text()
        units = [unit for unit in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if unit in flags]
        name += f" ({units[0]})" if units else ""
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{name}, {len(os.sched_getaffinity(0))} cores, {memory_gib:.0f} GiB"


def versions() -> dict[str, str]:
    """Python and the libraries that figures depend on, where installed."""
    found = {"python": platform.python_version()}
    for package in ("tenfold", "torch", "numpy", "scipy", "transformers", "tokenizers", "llama-cpp-python"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def write_results(name: str, rows: list[dict[str, Any]], command: str | None = None, beside: dict[str, str] | None = None) -> Path:
    """Write `bench/results/NAME.json` and return its path; `beside` are versions of what ran in other environments."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    record = {
        "machine": machine(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "versions": versions() | (beside or {}),
        "command": command or f"python bench/{Path(sys.argv[0]).name} {' '.join(sys.argv[1:])}".strip(),
        "rows": rows,
    }
    path.write_text(json.dumps(record, indent=1) + "\n")
    return path
