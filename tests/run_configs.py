"""Run files for tests from flat names: `run_config(tokens=6000, seq_len=64, keep_last=3)` puts each into its table."""

import msgspec

from tenfold.spec.layout import Layout
from tenfold.train.config import RunConfig
from tenfold.train.run_file import config_from_fields
from tenfold.train.tasks.pretrain import PretrainingConfig

TABLES = {f.name: f.type.__struct_fields__ for f in msgspec.structs.fields(RunConfig) if hasattr(f.type, "__struct_fields__")}
TABLES |= {"task": PretrainingConfig.__struct_fields__, "parallel": Layout.__struct_fields__}
# Names that several tables have, or that say too little by themselves.
SHORT = {
    "optimizer": ("optimizer", "name"),
    "vision": ("model", "vision"),
    "log_every": ("log", "every"),
    "save_every_s": ("checkpoint", "every_s"),
}


def run_config(**flat) -> RunConfig:
    fields = {}
    for name, value in flat.items():
        if (name in TABLES and isinstance(value, dict)) or name == "model":
            fields[name] = {**fields.get(name, {}), **value} if isinstance(value, dict) else value
        elif name in SHORT:
            table, key = SHORT[name]
            fields.setdefault(table, {})[key] = value
        elif name in RunConfig.__struct_fields__:
            fields[name] = value
        else:
            fields.setdefault(next(table for table, known in TABLES.items() if name in known), {})[name] = value
    return config_from_fields(fields, "test")
