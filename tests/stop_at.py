"""Hooks that do something to a run at a certain step."""

import os
import signal

from tenfold.train.hook import Hook
from tenfold.train.tasks.pretrain import Pretraining
from tenfold.train.trainer import fit, standard_hooks


class SignalAt(Hook):
    """Sends this process a signal after `step` steps of this start."""

    def __init__(self, step, number=signal.SIGTERM):
        self.left, self.number = step, number

    def after_step(self, run, done):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), self.number)


def pretrain_with(hooks, config, corpus, directory, task=Pretraining):
    """Pretrain with hooks before the standard ones."""
    return fit(task(config, corpus, directory.parent), config, directory, [*hooks, *standard_hooks(config, quiet=True)])
