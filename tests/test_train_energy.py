"""Energy against counters written by hand: RAPL files, an NVML that counts, and processor time."""

import sys
import time
import types

import pytest

from tenfold.train import energy
from tenfold.train.energy import BUSY_WATTS, IDLE_WATTS, EnergyMeter


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)


@pytest.fixture
def clock(monkeypatch):
    """A clock and a count of CPU time that the test sets."""
    now = types.SimpleNamespace(wall_s=100.0, cpu_s=7.0)
    monkeypatch.setattr(time, "monotonic", lambda: now.wall_s)
    monkeypatch.setattr(time, "process_time", lambda: now.cpu_s)
    return now


def zone(powercap, folder, name, micro_joules, wraps_at=262_143_328_850):
    path = powercap / folder
    path.mkdir(parents=True, exist_ok=True)
    (path / "name").write_text(f"{name}\n")
    (path / "max_energy_range_uj").write_text(f"{wraps_at}\n")
    if micro_joules is not None:
        (path / "energy_uj").write_text(f"{micro_joules}\n")


def test_rapl_counts_packages_once_and_wraps_around(tmp_path, no_gpu, clock):
    zone(tmp_path, "intel-rapl:0", "package-0", 5_000_000)
    zone(tmp_path, "intel-rapl:1", "package-1", 990_000_000, wraps_at=1_000_000_000)
    zone(tmp_path, "intel-rapl:2", "psys", 1_000)
    zone(tmp_path, "intel-rapl:0:0", "core", 1_000)
    zone(tmp_path, "intel-rapl-mmio:0", "package-0", 1_000)
    meter = EnergyMeter(tmp_path)
    for folder in ("intel-rapl:2", "intel-rapl:0:0", "intel-rapl-mmio:0"):
        zone(tmp_path, folder, (tmp_path / folder / "name").read_text().strip(), 900_000_000)
    zone(tmp_path, "intel-rapl:0", "package-0", 35_000_000)  # 30 J more
    zone(tmp_path, "intel-rapl:1", "package-1", 40_000_000, wraps_at=1_000_000_000)  # 10 J, the wrap, 40 J
    clock.wall_s += 4
    reading = meter.read()
    assert reading.source == "rapl"
    assert reading.joules == pytest.approx(80) and reading.watts == pytest.approx(20)
    zone(tmp_path, "intel-rapl:0", "package-0", 36_000_000)
    clock.wall_s += 1
    reading = meter.read()
    assert reading.joules == pytest.approx(81) and reading.watts == pytest.approx(1)
    meter.start()
    clock.wall_s += 1
    assert meter.read().joules == 0


@pytest.mark.parametrize("content", [None, "", "denied"])
def test_rapl_that_cannot_be_read_is_not_used(tmp_path, no_gpu, content):
    zone(tmp_path, "intel-rapl:0", "package-0", None)
    if content is not None:
        (tmp_path / "intel-rapl:0" / "energy_uj").write_text(content)
    assert EnergyMeter(tmp_path).read().source == "estimated"


def test_the_estimate_is_idle_power_and_cpu_time(tmp_path, no_gpu, clock, monkeypatch):
    monkeypatch.setattr(energy.os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)
    meter = EnergyMeter(tmp_path)
    clock.wall_s += 10
    idle = meter.read()
    assert idle.source == "estimated"
    assert idle.joules == pytest.approx(4 * 10 * IDLE_WATTS) and idle.watts == pytest.approx(4 * IDLE_WATTS)
    clock.wall_s += 10
    clock.cpu_s += 40  # all four busy
    busy = meter.read()
    assert busy.watts == pytest.approx(4 * BUSY_WATTS)
    assert busy.joules == pytest.approx(4 * 10 * (IDLE_WATTS + BUSY_WATTS))


def test_work_costs_more_than_sleep_by_this_machines_own_clock(tmp_path, no_gpu):
    meter = EnergyMeter(tmp_path)
    time.sleep(0.2)
    asleep = meter.read()
    end = time.process_time() + 0.2
    while time.process_time() < end:
        pass
    awake = meter.read()
    assert awake.joules - asleep.joules >= 0.99 * 0.2 * BUSY_WATTS and 0 < asleep.joules < awake.joules
    assert awake.watts > asleep.watts


class Counters:
    """An NVML of two GPUs whose counters the test sets, in millijoules as NVML gives them."""

    def __init__(self):
        self.milli_joules = {"GPU-a": 1_000_000, "GPU-b": 5_000_000}

    def nvmlInit(self):
        pass

    def nvmlDeviceGetCount(self):
        return 2

    def nvmlDeviceGetHandleByIndex(self, index):
        return sorted(self.milli_joules)[index]

    def nvmlDeviceGetHandleByUUID(self, uuid):
        if uuid not in self.milli_joules:
            raise KeyError(uuid)
        return uuid

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):
        return self.milli_joules[handle]


@pytest.mark.parametrize(
    ("visible", "gpu_joules"), [(None, 300), ("0,1", 300), ("1", 200), ("GPU-a", 100), ("-1", None), ("", None), ("MIG-x", None)]
)
def test_nvml_counts_the_visible_gpus_beside_the_processors(tmp_path, monkeypatch, clock, visible, gpu_joules):
    counters = Counters()
    monkeypatch.setitem(sys.modules, "pynvml", counters)
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    zone(tmp_path, "intel-rapl:0", "package-0", 0)
    meter = EnergyMeter(tmp_path)
    counters.milli_joules["GPU-a"] += 100_000
    counters.milli_joules["GPU-b"] += 200_000
    zone(tmp_path, "intel-rapl:0", "package-0", 7_000_000)
    clock.wall_s += 2
    reading = meter.read()
    assert reading.source == ("rapl" if gpu_joules is None else "nvml+rapl")
    assert reading.joules == pytest.approx(7 + (gpu_joules or 0))
    assert reading.watts == pytest.approx(reading.joules / 2)
    assert EnergyMeter(tmp_path / "none").source == ("estimated" if gpu_joules is None else "nvml+estimated")
