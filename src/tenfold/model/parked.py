"""Move the contents of tensors to host memory for a while, so that their device has room for other work."""

from collections.abc import Iterable

import torch
from torch import Tensor


class Parked:
    """Holds the contents of `tensors` in host memory until `bring_back`.

    Meanwhile the tensor objects and their views exist but have no storage: they must not be read or written.
    """

    def __init__(self, tensors: Iterable[Tensor]):
        storages = {storage.data_ptr(): storage for storage in (tensor.untyped_storage() for tensor in tensors)}
        self._held = [(storage, torch.UntypedStorage(storage.nbytes()).copy_(storage)) for storage in storages.values()]
        for storage, _ in self._held:
            storage.resize_(0)
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()

    def bring_back(self) -> None:
        """Restore the contents of the tensors on their device, at new addresses."""
        while self._held:
            storage, held = self._held.pop()
            storage.resize_(held.nbytes())
            storage.copy_(held)
