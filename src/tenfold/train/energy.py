"""The energy of a run: measured by NVML and RAPL where they are available, otherwise estimated. `Energy.source` says which.

NVML is read through NVIDIA's own binding. RAPL is read from the kernel's files
(https://docs.kernel.org/power/powercap/powercap.html): pyRAPL and pyJoules have had no release since 2019 and 2020, and the
maintained libraries (codecarbon, zeus, perun) depend on pandas, MPI or a server.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path

from tenfold.spec.threads import available_cores

# Watts of a cloud server per logical processor, idle and busy, without memory: Cloud Carbon Footprint's averages for AWS, from
# SPECpower results of whole servers (https://www.cloudcarbonfootprint.org/docs/methodology/).
IDLE_WATTS = 0.74
BUSY_WATTS = 3.5


@dataclass(frozen=True)
class Energy:
    """Joules since the start, mean watts since the last reading, and `source`: some of nvml, rapl and estimated, joined by `+`."""

    joules: float
    watts: float
    source: str


class EnergyMeter:
    """The energy used by this machine's visible GPUs and its CPUs since `start` (or since the meter was made).

    GPUs and RAPL packages are counted completely, whichever process uses them. If no RAPL package can be read (in a virtual
    machine, or without permission), CPU energy is estimated: each logical processor that this process may use draws `IDLE_WATTS`,
    and the CPU time of this process draws `BUSY_WATTS` instead. With several processes on a machine, one counts the
    `whole_machine`; the meters of the others count only what their own CPU time adds to the estimate, so the sum over all
    processes is the machine's energy. Read the meter every few minutes: a RAPL counter can wrap around within 20 minutes of full
    load.
    """

    def __init__(self, powercap: Path = Path("/sys/class/powercap"), whole_machine: bool = True) -> None:
        gpus, packages = _nvml_devices(), _rapl_packages(powercap)
        self.source = ("nvml+" if gpus else "") + ("rapl" if packages else "estimated")
        self._estimates = not packages
        self._gpus, self._packages = (gpus, packages) if whole_machine else ([], [])
        processors = available_cores()
        self._idle_watts = IDLE_WATTS * processors if whole_machine else 0.0
        self.start()

    def start(self) -> None:
        """Start counting from zero."""
        self._joules = 0.0
        self._last_time, self._last_cpu_s = time.monotonic(), time.process_time()
        self._last_gpu_j = [_gpu_joules(gpu) for gpu in self._gpus]
        self._last_rapl_uj = [_number(package / "energy_uj") for package in self._packages]

    def read(self) -> Energy:
        """The energy since `start`."""
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
    """NVML handles of the GPUs visible under CUDA_VISIBLE_DEVICES; empty unless all of them report their energy."""
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
    except Exception:  # pynvml is not installed, no driver, a MIG slice, or a GPU too old to report its energy
        return []


def _gpu_joules(gpu: object) -> float:
    import pynvml

    return pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu) / 1e3


def _rapl_packages(powercap: Path) -> list[Path]:
    """The readable package domains. `psys` and the domains inside a package are left out: they would be counted twice."""
    packages = []
    for zone in sorted(powercap.glob("intel-rapl:*")):  # also the name of the zones on AMD CPUs
        try:
            if (zone / "name").read_text().startswith("package") and _number(zone / "energy_uj") >= 0:
                packages.append(zone)
        except (OSError, ValueError):
            continue
    return packages


def _number(path: Path) -> int:
    return int(path.read_text())
