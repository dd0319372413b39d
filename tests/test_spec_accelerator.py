"""Accelerators that another package adds."""

import os
import subprocess
import sys

from packages import install

PACKAGE = """
from dataclasses import replace
from tenfold.spec.accelerator import PUBLISHED, Accelerator
CHIP = Accelerator(key="chip", name="A chip of our own", memory_gb=96, memory_gb_per_s=2000, source="its maker", bf16_tflops=400,
                   tdp_w=350, device="xpu", rent_usd_per_h=(0.9, 1.0, 1.2), purchase_usd=9000)
MORE = {"h100": replace(PUBLISHED["h100"], memory_gb=90)}
"""
USE = """
from tenfold.plan.costs.cost import price, run_cost
from tenfold.plan.costs.power import Held, run_power
from tenfold.plan.sites.site import site
from tenfold.plan.workload.machine import machine
from tenfold.spec.accelerator import accelerator
chip = accelerator("chip")
held = Held(chip, 8, 100.0)
power = run_power(held, 1.0, 1.0)
cost = run_cost(held, power, site("TX"))
print(chip.device, machine("chip").matmul_flops("bf16") < 400e12, power.board_w.high <= 350, cost.rent_usd.mid, price(chip).assumed)
print(accelerator("h100").memory_gb, accelerator("h200").device)
"""


def test_another_package_adds_an_accelerator_and_replaces_one(tmp_path):
    install(tmp_path, "chips", {"chips": PACKAGE}, {"accelerators": {"chip": "chips:CHIP", "more": "chips:MORE"}})
    path = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run([sys.executable, "-c", USE], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["xpu True True 800.0 False", "90 cuda"]
