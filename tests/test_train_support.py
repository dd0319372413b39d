"""What stands around the loop: progress, peak memory, number formats and signals."""

import io
import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch

from tenfold.train import precision, progress
from tenfold.train.device import published
from tenfold.train.precision import choose_dtype, fastest_dtype, peak_flops
from tenfold.train.progress import TrainingProgress
from tenfold.train.signals import stop_on_signals

CPU = torch.device("cpu")


# Progress


def test_without_a_terminal_a_short_run_is_silent(capfd):
    with TrainingProgress(100, "train") as shown:
        for step in range(1, 101):
            shown.update(step, 2.0, 1e4, 0.5, 20.0)
    assert capfd.readouterr() == ("", "")


def test_without_a_terminal_a_long_run_says_a_line_every_half_minute_on_standard_error(capfd, monkeypatch):
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with TrainingProgress(1000, "rung 3") as shown:
        for step in range(900, 1000):  # resumed at 900, four seconds a step
            shown.update(step, 2.3456, 12_345.0, 0.42, 19.6)
            now += 4.0
    out, err = capfd.readouterr()
    lines = err.splitlines()
    assert out == "" and 11 <= len(lines) <= 100 * 4 / progress.LINE_EVERY_S
    assert lines[0] == "rung 3: step 908/1000  loss 2.346  12.3 ktokens/s  MFU 42%  20 W  6 min 8 s left"


def test_a_run_told_to_be_quiet_is(capfd, monkeypatch):
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    with TrainingProgress(10, "train", enabled=False) as shown:
        shown.update(5, 2.0, 1e4, 0.5, 20.0)
    assert capfd.readouterr() == ("", "")


def test_on_a_terminal_there_is_a_bar_with_all_figures(monkeypatch):
    master, slave = pty.openpty()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "140")
    monkeypatch.delenv("NO_COLOR", raising=False)
    terminal = io.TextIOWrapper(io.FileIO(slave, "w"), write_through=True)
    monkeypatch.setattr(sys, "stderr", terminal)
    with TrainingProgress(100, "rung 3") as shown:
        shown.update(40, 2.3456, 12_345.0, 0.42, 19.6)
        time.sleep(0.3)
    said = os.read(master, 100_000).decode()
    for figure in ("rung 3", "loss 2.346", "12.3 ktokens/s", "MFU 42%", "20 W"):
        assert figure in said
    terminal.close()
    os.close(master)


# Memory


def test_peak_memory_agrees_with_the_systems_own_figure_and_can_start_again():
    """In a process of its own, whose memory no other test has grown or shrunk."""
    code = """if True:
        import numpy, psutil, torch
        from tenfold.train.memory import peak_memory_bytes, reset_peak_memory
        now, cpu = psutil.Process().memory_info, torch.device("cpu")
        before = now().rss
        block = numpy.ones(150_000_000, dtype=numpy.uint8)
        held = now().rss
        del block
        print(before, held, peak_memory_bytes(cpu), reset_peak_memory(cpu), now().rss, peak_memory_bytes(cpu))"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, held, peak, reset, left, peak_after = (json.loads(word.lower()) for word in done.stdout.split())
    assert peak >= held - 2**20 and held - before > 0.9 * 150e6
    if not reset:
        pytest.skip("this kernel does not let the peak start again")
    assert peak_after == pytest.approx(left, abs=20e6) and peak_after < held - 75e6


# Number formats


@pytest.mark.parametrize(("gain", "want"), [(8.0, torch.bfloat16), (1.4, torch.float32), (0.2, torch.float32)])
def test_bfloat16_is_chosen_where_it_is_half_as_fast_again(monkeypatch, gain, want):
    monkeypatch.setattr(precision, "_product", lambda size, device, dtype: dtype)
    monkeypatch.setattr(precision, "_seconds", lambda dtype: 1.0 if dtype == torch.float32 else 1.0 / gain)
    fastest_dtype.cache_clear()
    assert fastest_dtype(CPU) == want and choose_dtype(CPU, 512) == want and choose_dtype(CPU, 64) == torch.float32
    monkeypatch.setattr(precision, "_seconds", None)  # and is not measured again
    assert fastest_dtype(CPU) == want
    fastest_dtype.cache_clear()


def test_measuring_leaves_the_random_state_alone_and_agrees_with_numpy():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    fastest_dtype.cache_clear()
    precision._measured_flops.cache_clear()
    fastest_dtype(CPU)
    flops, source = peak_flops(CPU, torch.float32)
    assert torch.equal(before, torch.get_rng_state())
    assert "float32" in source and "this machine" in source
    a, seconds = np.random.default_rng(0).standard_normal((1024, 1024), dtype=np.float32), []
    for _ in range(5):
        began = time.perf_counter()
        a @ a
        seconds.append(time.perf_counter() - began)
    rate = 2 * 1024**3 / min(seconds)
    assert rate / 10 < flops < rate * 10  # of the same order: cores and libraries differ, units must not


def test_a_machine_too_slow_to_measure_twice_still_has_a_peak(monkeypatch):
    monkeypatch.setattr(precision, "_seconds", lambda work: 5.0)
    precision._measured_flops.cache_clear()
    assert peak_flops(CPU, torch.bfloat16)[0] == pytest.approx(2 * 512**3 / 5.0)
    precision._measured_flops.cache_clear()


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H100 NVL", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA A100 80GB PCIe", "a100-pcie"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA L40", None),
        ("NVIDIA B200", "b200"),
        ("NVIDIA GB200", "gb200"),
        ("AMD Instinct MI300X", "mi300x"),
        ("NVIDIA GeForce RTX 4090", None),
    ],
)
def test_a_gpus_name_finds_its_own_data_sheet_and_no_others(name, key):
    chip = published(name)
    assert (chip.key if chip else None) == key


# Signals


@pytest.fixture
def hangup_ends():
    """Also where the tests were started under nohup, which ignores it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_becomes_a_flag_and_the_old_handlers_come_back(number, hangup_ends):
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGUSR1)]
    with stop_on_signals() as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert stop.requested and stop.by == signal.Signals(number).name
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGUSR1)] == before


def test_the_second_ctrl_c_interrupts_and_another_signal_before_it_does_not_count():
    before = signal.getsignal(signal.SIGINT)
    reached = False
    with pytest.raises(KeyboardInterrupt), stop_on_signals() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        reached = stop.requested
        os.kill(os.getpid(), signal.SIGINT)
    assert reached and signal.getsignal(signal.SIGINT) == before


def test_in_another_thread_nothing_is_installed():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def work():
        with stop_on_signals() as stop:
            seen.append((stop.requested, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(False, before)]
