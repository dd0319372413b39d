"""Energy of a run: measured where the machine tells (NVML, RAPL), otherwise estimated and said so.

The libraries that cover both (codecarbon, zeus) bring pandas or scikit-learn along; what is needed of RAPL is one
number in a file.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

WATTS_PER_CORE = 6.0  # a busy server core with its share of package and memory (SPECpower-like, 205 W / 32 cores)
IDLE_SHARE = 0.4  # of that, drawn by a core that does nothing


@dataclass(frozen=True)
class Energy:
    """Joules since the start, watts since the last reading, and `source`: nvml, rapl, nvml+rapl or estimated."""

    joules: float
    watts: float
    source: str


class EnergyMeter:
    """Reads the energy used since `start`, by all visible GPUs and the processor package."""

    def __init__(self) -> None:
        self._gpus = _nvml_devices()
        self._packages = _rapl_packages()
        self.source = "+".join(n for n, found in (("nvml", self._gpus), ("rapl", self._packages)) if found) or "estimated"

    def start(self) -> None:
        self._began = self._last_time = time.monotonic()
        self._joules = 0.0
        self._last_cpu_s = _cpu_seconds()
        self._last_gpu_j = [self._gpu_joules(gpu) for gpu in self._gpus]
        self._last_rapl_uj = [_number(path / "energy_uj") for path in self._packages]

    def read(self) -> Energy:
        now = time.monotonic()
        span = max(1e-9, now - self._last_time)
        added = 0.0
        for i, gpu in enumerate(self._gpus):
            joules = self._gpu_joules(gpu)
            added += joules - self._last_gpu_j[i]
            self._last_gpu_j[i] = joules
        for i, path in enumerate(self._packages):
            micro = _number(path / "energy_uj")
            step = micro - self._last_rapl_uj[i]
            added += (step if step >= 0 else step + _number(path / "max_energy_range_uj")) / 1e6
            self._last_rapl_uj[i] = micro
        if self.source == "estimated":
            cpu = _cpu_seconds()
            cores = len(os.sched_getaffinity(0))
            added = WATTS_PER_CORE * (IDLE_SHARE * cores * span + (1 - IDLE_SHARE) * (cpu - self._last_cpu_s))
            self._last_cpu_s = cpu
        self._joules += added
        self._last_time = now
        return Energy(self._joules, added / span, self.source)

    @staticmethod
    def _gpu_joules(gpu: object) -> float:
        import pynvml

        return pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu) / 1e3


def _nvml_devices() -> list:
    try:
        import pynvml

        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        for handle in handles:
            pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
        return handles
    except Exception:  # not installed, no driver, or a GPU too old to count energy
        return []


def _rapl_packages(root: Path = Path("/sys/class/powercap")) -> list[Path]:
    packages = []
    for path in sorted(root.glob("intel-rapl:*")):
        if path.name.count(":") == 1 and os.access(path / "energy_uj", os.R_OK):
            packages.append(path)
    return packages


def _number(path: Path) -> int:
    return int(path.read_text())


def _cpu_seconds() -> float:
    times = psutil.Process().cpu_times()
    return times.user + times.system
