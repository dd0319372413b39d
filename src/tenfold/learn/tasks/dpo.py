"""Direct preference optimization (arXiv 2305.18290): the chosen answer of a pair becomes likelier than the rejected one, relative
to the weights that the run begins with. A run file:

init_from = "SmolLM2-135M-Instruct"
tokens = 20480
[task]
name = "dpo"
[data]
corpus = "preferences.jsonl"
seq_len = 512
batch_size = 4
[optimizer]
name = "adamw"
"""

from pathlib import Path

from torch import Tensor, nn

from tenfold.data.conversations.answers import PackedAnswers, pack_pairs
from tenfold.data.conversations.preferences import Preference, read_preferences
from tenfold.data.conversations.tokens import ChatEncoder
from tenfold.learn.options import DPOConfig
from tenfold.learn.tasks.compared import ComparedAnswers
from tenfold.learn.tasks.objectives import dpo
from tenfold.model.log_probs import document_log_probs
from tenfold.train.config import RunConfig
from tenfold.train.run_file import task_settings
from tenfold.train.task import Batch


class DPO(ComparedAnswers):
    """The task `dpo`. Its loss is a mean over pairs."""

    settings: DPOConfig

    @classmethod
    def open(cls, config: RunConfig, home: Path, *, quiet: bool = False) -> "DPO":
        """The task of a run file. Raises TenfoldError where it names no model to begin from, or pairs that cannot be read."""
        return cls(config, task_settings(config, DPOConfig), quiet=quiet)

    def read(self, path: Path) -> list[Preference]:
        return read_preferences(path)

    def pack(self, examples: list[Preference], encoder: ChatEncoder, seq_len: int) -> PackedAnswers:
        return pack_pairs(examples, encoder, seq_len)

    def log_probs(self, model: nn.Module, batch: Batch) -> Tensor:
        assert batch.document is not None
        most = batch.inputs["reference"].shape[1]
        return document_log_probs(model, batch.tokens, batch.targets, batch.document, 2 * most).unflatten(1, (most, 2))

    def losses(self, ratios: Tensor, batch: Batch) -> Tensor:
        chosen, rejected = ratios.unbind(-1)
        lengths, counted = batch.inputs["lengths"], batch.inputs["counted"]
        self.tally.add("accuracy", chosen > rejected, counted)
        self.tally.add("margin", self.settings.beta * (chosen - rejected), counted)
        return dpo(chosen, rejected, (lengths[..., 0], lengths[..., 1]), self.settings.beta, self.settings.loss_type)
