"""Unmerged LoRA adapters of one model: in a step, each sequence has its own adapter or none (as in S-LoRA, arXiv 2311.03285)."""

from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from tenfold.model.io.peft import read_matrices
from tenfold.model.llama import Llama


class Adapters:
    """The adapters of PEFT directories, by name. Raises TenfoldError if one does not fit the model, or is not plain LoRA."""

    def __init__(self, model: Llama, directories: dict[str, Path]):
        self._rows: list[tuple[str, slice]] = []  # of the current step: adapters, and the rows that they apply to
        read = {name: read_matrices(model, directory) for name, directory in directories.items()}
        for linear in {linear for matrices in read.values() for linear in matrices}:
            own = {name: matrices[linear] for name, matrices in read.items() if linear in matrices}
            linear.register_forward_hook(lambda _, inputs, output, own=own: self._add(own, inputs[0], output))

    def begin(self, names: list[str], counts: list[int]) -> None:
        """Set the adapters of the next forward pass, whose inputs are x [1, rows, in].

        The adapter `names[i]` ('' for none) applies to `counts[i]` rows, one group after another.
        """
        self._rows, first = [], 0
        for name, own in groupby(zip(names, counts, strict=True), key=itemgetter(0)):
            end = first + sum(count for _, count in own)
            if name:
                self._rows.append((name, slice(first, end)))
            first = end

    def _add(self, own: dict[str, Any], x: Tensor, output: Tensor) -> None:
        for name, rows in self._rows:
            if name in own:
                a, b, scale = own[name]
                output[:, rows] += scale * F.linear(F.linear(x[:, rows], a), b)
