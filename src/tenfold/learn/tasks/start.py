"""What the tuning tasks share: checks of the run file, and the adapters (LoRA) that a run may train."""

from pathlib import Path
from typing import Any, cast

import torch.distributed as dist
from torch import nn

from tenfold.learn.options import LoRAOptions
from tenfold.model.io.huggingface import weights_hash
from tenfold.model.io.peft import read_adapter, write_adapter
from tenfold.model.lora import add_lora, merge_lora
from tenfold.model.quantised import quantise_layers
from tenfold.spec.errors import TenfoldError
from tenfold.train.config import RunConfig
from tenfold.train.contradictions import refuse
from tenfold.train.task import TaskBase

UNUSED = ("data.mixture", "data.images", "data.image_share", "data.vocab_size", "data.cache_gib")


class TuningTask(TaskBase):
    """A task that trains all weights of a model, or with a `lora_rank` adapters beside frozen weights, which `quantization` rounds.

    Adapters are written to `adapter/` in PEFT's format, and merged into `model/`.
    """

    settings: LoRAOptions
    directory: Path

    @property
    def adds_modules(self) -> bool:  # type: ignore[override]
        return bool(self.settings.lora_rank)

    @property
    def trained_share(self) -> float:
        """The share of the FLOPs of training all weights: the gradients of frozen weights are not computed."""
        return 2 / 3 if self.settings.lora_rank else 1.0

    def fingerprint(self) -> dict[str, str]:
        return {} if self.settings.adapter is None else {"adapter": weights_hash(Path(self.settings.adapter))}

    def prepare(self, model: nn.Module) -> None:
        """Add the adapters to the model. Raises TenfoldError where one does not fit, and on several processes."""
        given = self.settings
        if not given.lora_rank:
            return
        if dist.is_initialized() and dist.get_world_size() > 1:
            raise TenfoldError("Adapters are trained on one process: set lora_rank to 0, or start it without --launch.")
        freeze(model, given)
        add_lora(model, given.lora_rank, 2.0 * given.lora_rank if given.lora_alpha is None else given.lora_alpha)
        if given.adapter is not None:
            read_adapter(cast(Any, model), Path(given.adapter))

    def finish(self, model: nn.Module, directory: Path) -> None:
        if self.settings.lora_rank:
            write_adapter(cast(Any, model), directory / "adapter", str(self.directory))
            merge_lora(model)


def freeze(model: nn.Module, given: LoRAOptions) -> None:
    """Quantise the frozen weights in place, where `given` asks for it."""
    if given.quantization is not None:
        quantise_layers(model, given.quantization)


def model_of(config: RunConfig) -> Path:
    """The model to begin with. Raises TenfoldError where the run file names none, or has settings that tuning does not use."""
    task = config.task
    for key in ("lora_alpha", "quantization", "adapter"):
        if task.get(key) is not None and not task.get("lora_rank"):
            raise TenfoldError(f"{key} in [task] is for adapters: give lora_rank, too, or leave {key} out.")
    if (adapter := task.get("adapter")) is not None and not (Path(adapter) / "adapter_config.json").exists():
        raise TenfoldError(f"{adapter} is no adapter of PEFT's: give a folder with adapter_config.json.")
    for key in UNUSED:
        refuse(config, key, f'the task is "{config.task["name"]}"')
    if config.init_from is None:
        raise TenfoldError("Fine-tuning needs a model to begin with: give init_from.")
    return Path(config.init_from)


def check_rows(there: int, asked: int, max_epochs: float) -> None:
    """Raises TenfoldError where a run would read its rows more often than `max_epochs`."""
    if asked / there > max_epochs:
        raise TenfoldError(
            f"The run would read its {there} rows of chats {asked / there:.1f} times: give more chats, take fewer steps, or "
            f"raise max_epochs ({max_epochs:g})."
        )
