"""Energy of a run: measured where the machine tells (NVML, RAPL), otherwise estimated and said so.

NVML is read through NVIDIA's own binding. For RAPL, pyRAPL and pyJoules have had no release since 2019 and 2020, and
the libraries that are kept up (codecarbon, zeus, perun) bring pandas, MPI or a server along; what is needed of it is
one number in a file of the kernel (https://docs.kernel.org/power/powercap/powercap.html).
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path

# Watts of one logical processor in a cloud server, idle and busy, whole-server SPECpower results shared out over
# them: Cloud Carbon Footprint, AWS averages (https://www.cloudcarbonfootprint.org/docs/methodology/). Memory is extra.
IDLE_WATTS = 0.74
BUSY_WATTS = 3.5


@dataclass(frozen=True)
class Energy:
    """Joules since the start, watts since the last reading, and `source`: nvml, rapl and estimated, joined by `+`."""

    joules: float
    watts: float
    source: str


class EnergyMeter:
    """The energy that this machine's visible GPUs and its processors used since `start` (or since it was made).

    GPUs and RAPL packages are counted whole, whoever uses them. Where no package can be read (a virtual machine, no
    permission), the processors' part is estimated: each logical processor that this process may use draws `IDLE_WATTS`, and
    the CPU time of this process draws up to `BUSY_WATTS`. Of several processes on a machine one counts the `whole_machine`;
    the meters of the others count what their own CPU time adds to the estimate, so that the sum of all is the machine's.
    Read it every few minutes at least: a RAPL counter wraps around within 20 minutes of full load on some machines.
    """

    def __init__(self, powercap: Path = Path("/sys/class/powercap"), whole_machine: bool = True) -> None:
        gpus, packages = _nvml_devices(), _rapl_packages(powercap)
        self.source = ("nvml+" if gpus else "") + ("rapl" if packages else "estimated")
        self._estimates = not packages
        self._gpus, self._packages = (gpus, packages) if whole_machine else ([], [])
        processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._idle_watts = IDLE_WATTS * processors if whole_machine else 0.0
        self.start()

    def start(self) -> None:
        """Count from now on."""
        self._joules = 0.0
        self._last_time, self._last_cpu_s = time.monotonic(), time.process_time()
        self._last_gpu_j = [_gpu_joules(gpu) for gpu in self._gpus]
        self._last_rapl_uj = [_number(package / "energy_uj") for package in self._packages]

    def read(self) -> Energy:
        """The energy up to now."""
        now = time.monotonic()
        seconds = max(1e-9, now - self._last_time)
        added = self._gpus_added_joules()
        added += self._estimated_joules(seconds) if self._estimates else self._packages_added_joules()
        self._joules += added
        self._last_time = now
        return Energy(self._joules, added / seconds, self.source)

    def _gpus_added_joules(self) -> float:
        before, self._last_gpu_j = self._last_gpu_j, [_gpu_joules(gpu) for gpu in self._gpus]
        return sum(self._last_gpu_j) - sum(before)

    def _packages_added_joules(self) -> float:
        before, self._last_rapl_uj = self._last_rapl_uj, [_number(p / "energy_uj") for p in self._packages]
        added = 0
        for package, last, now in zip(self._packages, before, self._last_rapl_uj, strict=True):
            added += now - last if now >= last else now - last + _number(package / "max_energy_range_uj")
        return added / 1e6

    def _estimated_joules(self, seconds: float) -> float:
        before, self._last_cpu_s = self._last_cpu_s, time.process_time()
        return self._idle_watts * seconds + (BUSY_WATTS - IDLE_WATTS) * (self._last_cpu_s - before)


def _nvml_devices() -> list:
    """NVML handles of the GPUs that CUDA_VISIBLE_DEVICES leaves visible, if all of them count their energy."""
    try:
        import pynvml

        pynvml.nvmlInit()
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        if visible is None:
            handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        else:
            names = [name.strip() for name in visible.split(",") if name.strip() not in ("", "-1")]
            handles = [
                pynvml.nvmlDeviceGetHandleByIndex(int(name)) if name.isdigit() else pynvml.nvmlDeviceGetHandleByUUID(name)
                for name in names
            ]
        for handle in handles:
            _gpu_joules(handle)
        return handles
    except Exception:  # not installed, no driver, a slice of a GPU, or one too old to count energy
        return []


def _gpu_joules(gpu: object) -> float:
    import pynvml

    return pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu) / 1e3


def _rapl_packages(powercap: Path) -> list[Path]:
    """The readable package domains; `psys` and the domains inside a package would count the same energy twice."""
    packages = []
    for zone in sorted(powercap.glob("intel-rapl:*")):  # AMD's are listed under the same name
        try:
            if (zone / "name").read_text().startswith("package") and _number(zone / "energy_uj") >= 0:
                packages.append(zone)
        except (OSError, ValueError):
            continue
    return packages


def _number(path: Path) -> int:
    return int(path.read_text())
