"""An accelerator: rates, power and price for plans, and the PyTorch device on which it trains and serves."""

from tenfold.spec.accelerator import Accelerator

CHIP = Accelerator(
    key="tiny",
    name="Tiny chip",
    memory_gb=96,
    memory_gb_per_s=2000,
    source="its maker",
    bf16_tflops=0.5,
    scaleup_gb_per_s=100,
    tdp_w=350,
    device="cpu",
    rent_usd_per_h=(0.9, 1.0, 1.2),
    purchase_usd=9000,
)
