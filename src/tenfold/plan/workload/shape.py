"""From a request to a model shape and its tokens, by the shape rule of `spec.shapes` or by a given shape."""

import tomllib
from dataclasses import replace
from pathlib import Path

from tenfold.plan.request import Request
from tenfold.plan.workload.data import data_note
from tenfold.spec.errors import TenfoldError
from tenfold.spec.files import readable
from tenfold.spec.laws import facts, optimum, own_law
from tenfold.spec.model import ModelSpec, published_model
from tenfold.spec.shapes import Experts, Shape, shape_for_flops, shape_for_params
from tenfold.spec.units import si

TIMES = 10.0  # default of --times: one generation
EXPERTS_PER_ACTIVE = 32  # default; sparser models exist (Llama 4 Maverick: 128), but not at ten times their compute


def parent_flops(parent: str, seq_len: int) -> tuple[ModelSpec, float]:
    """(shape, training FLOPs) of a published model. Raises TenfoldError where its tokens are unknown."""
    spec = published_model(parent)
    tokens = facts()["parents"].get(spec.name)
    if tokens is None:
        raise TenfoldError(f"The training tokens of {spec.name} are not published: give --flops instead of --after.")
    return spec, spec.train_flops_per_token(seq_len) * tokens


def batch_tokens(flops: float) -> float:
    """Tokens per step: those of Llama 3 405B, scaled by a power of the compute (`[batch]` in spec/data/laws.toml)."""
    row = facts()["batch"]
    return row["tokens"] * (flops / row["flops"]) ** row["exponent"]


def resolve(asked: Request, seq_len: int = 8192, *, flops: float | None = None, home: Path | None = None) -> Shape:
    """The shape of a request. `flops` is the compute that a budget buys, for a request without one.

    Without --law, the newest law in `home` that reaches the compute is used. Raises TenfoldError for options that contradict each
    other, and where nothing determines the compute.
    """
    _check(asked, flops)
    name = "plan"
    if asked.after:
        parent, parents = parent_flops(asked.after, seq_len)
        times = TIMES if asked.times is None else asked.times
        flops, name = times * parents, f"{parent.name} x{times:g}"
    flops = asked.flops or flops
    if asked.model:
        shape = _own_shape(asked, flops, seq_len)
    elif flops:
        shape = _derived_shape(asked, flops, seq_len, home)
        shape = shape._replace(spec=replace(shape.spec, name=name))
    else:
        raise TenfoldError("Nothing says how large the run is: give --after, --flops, --model with --tokens, or --budget-usd.")
    if shape.tokens < 1:
        raise TenfoldError(f"{shape.flops:.3g} FLOPs train {shape.spec.name} on less than one token: raise --flops.")
    return shape._replace(reasons=(*shape.reasons, data_note(shape.tokens, asked.unique_tokens, asked.feedback_tokens)))


def _check(asked: Request, flops: float | None) -> None:
    if asked.after and asked.flops:
        raise TenfoldError("--after and --flops both determine the compute: give one of them.")
    if asked.model and asked.experts:
        raise TenfoldError("--model already says how many experts there are: leave --experts out.")
    if asked.times is not None and not asked.after:
        raise TenfoldError("--times multiplies the compute of a published model: name that model with --after.")
    if asked.times is not None and asked.times <= 0:
        raise TenfoldError(f"--times must be above zero, not {asked.times:g}.")
    if asked.tokens and asked.model and (asked.flops or asked.after or flops):
        raise TenfoldError("--model with --tokens determines the compute: leave out --flops, --after or --budget-usd.")
    if asked.experts_per_token and not (asked.experts or asked.model):
        raise TenfoldError("--active-experts needs --experts: give the number of experts.")


def _derived_shape(asked: Request, flops: float, seq_len: int, home: Path | None) -> Shape:
    family, experts = "llama3", None
    if asked.experts:
        per_token = asked.experts_per_token or max(1, asked.experts // EXPERTS_PER_ACTIVE)
        family, experts = "llama4", Experts(asked.experts, per_token, asked.shared, asked.interleave)
    if asked.tokens:
        spec = shape_for_params(flops / 6 / asked.tokens, asked.vocab_size, family, experts)
        tokens = round(flops / spec.train_flops_per_token(seq_len))
        reason = f"Model: width {spec.dim}, {si(spec.parameters().active)} active parameters, {si(tokens)} tokens, as asked."
        return Shape(spec, tokens, flops, (reason,))
    law = asked.law or (own_law(home, flops, family) if home else None)
    return shape_for_flops(flops, asked.vocab_size, seq_len, family=family, experts=experts, law=law)


def _own_shape(asked: Request, flops: float | None, seq_len: int) -> Shape:
    path = asked.model
    assert path is not None
    spec = _read_spec(path)
    per_token = spec.train_flops_per_token(seq_len)
    tokens = asked.tokens or (flops / per_token if flops else None)
    if tokens is None:
        raise TenfoldError("--model does not say how long to train: give --tokens, --flops, --after or --budget-usd, too.")
    reason = f"Model: {spec.name} as given, {si(spec.parameters().active)} active parameters."
    if asked.law:
        best = optimum(per_token * tokens, asked.law)
        reason += f" For the same FLOPs, {best.source} takes {si(best.params)} parameters and {si(best.tokens)} tokens."
    return Shape(spec, round(tokens), per_token * tokens, (reason,))


def _read_spec(path: Path) -> ModelSpec:
    """The shape in a TOML file, or a published one."""
    if not path.exists():
        try:
            return published_model(str(path))
        except TenfoldError as error:
            raise TenfoldError(f"There is no file {path}, and {str(error)[0].lower()}{str(error)[1:]}") from error
    try:
        with readable(path):
            plain = tomllib.loads(path.read_text())
        return ModelSpec(**{"name": path.stem, **{k: v for k, v in plain.items() if k != "source"}})
    except (tomllib.TOMLDecodeError, TypeError) as error:
        raise TenfoldError(f"{path} is no model: {error}; give the fields of ModelSpec, such as dim, n_layers, n_heads.") from error
