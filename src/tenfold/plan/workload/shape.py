"""From compute to parameters and tokens by a law, and from parameters to a shape near the Llama family."""

import json
import math
import tomllib
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from tenfold.spec.errors import TenfoldError, nearest
from tenfold.spec.model import ModelSpec, published_model
from tenfold.spec.units import si

HEAD_DIM = 128
TIMES = 10.0  # a generation, where not said
LAW = "llama3"
VOCABULARY = 128_256  # Llama 3's
EXPERTS_PER_ACTIVE = 32  # sparser models exist (Llama 4 Maverick: 128), but not at ten times their compute
FAMILY = ((2048, 16), (4096, 32), (8192, 80), (16384, 126))  # (width, layers) of Llama 3: 1B, 8B, 70B, 405B


@cache
def facts() -> dict[str, Any]:
    """`plan/data/laws.toml`: laws, tokens of published models, the largest corpus, the batch."""
    return tomllib.loads(resources.files("tenfold.plan").joinpath("data/laws.toml").read_text())


def laws() -> list[str]:
    """Names of the published laws."""
    return [name for name in facts() if "tokens_exponent" in facts()[name] or "alpha" in facts()[name]]


def optimum(flops: float, law: str) -> tuple[float, float, str]:
    """(active parameters, tokens, source) for `flops` by a published law, or by the law in a JSON file of `tenfold law`."""
    if law.endswith(".json"):
        return _own_law(flops, Path(law))
    if law not in laws():
        raise TenfoldError(f"There is no law {law!r}{nearest(law, laws())}: name one of {', '.join(laws())}, or a law.json.")
    row = facts()[law]
    if "tokens_exponent" in row:
        tokens = row["tokens_coefficient"] * flops ** row["tokens_exponent"]
        return flops / 6 / tokens, tokens, row["source"]
    alpha, beta = row["alpha"], row["beta"]
    g = (alpha * row["A"] / (beta * row["B"])) ** (1 / (alpha + beta))
    params = g * (flops / 6) ** (beta / (alpha + beta))
    return params, flops / 6 / params, row["source"]


def _own_law(flops: float, path: Path) -> tuple[float, float, str]:
    from tenfold.scale.law import Law

    if not path.exists():
        raise TenfoldError(f"There is no law at {path}: write one with `tenfold law fit points.csv --out law.json`.")
    try:
        law = Law.from_dict(json.loads(path.read_text()))
    except (ValueError, KeyError, TypeError) as error:
        raise TenfoldError(f"{path} is no law: write one with `tenfold law fit points.csv --out law.json`.") from error
    params, tokens, _ = law.optimum(flops)
    stretch = flops / law.largest_flops
    warning = f", {stretch:.2g} times beyond its largest run" if stretch > 1 else ""
    return params, tokens, f"the law of {path}, {law.n_points} runs{warning}"


def family_layers(width: float) -> float:
    """Layers of a Llama of this width, between the published ones (in logarithms), beyond the last as it went on."""
    pairs = [(math.log(w), math.log(n)) for w, n in FAMILY]
    i = max(0, min(len(pairs) - 2, sum(math.log(width) >= x for x, _ in pairs) - 1))
    (x0, y0), (x1, y1) = pairs[i], pairs[i + 1]
    return math.exp(y0 + (math.log(width) - x0) * (y1 - y0) / (x1 - x0))


def dense_shape(params: float, name: str = "plan", vocab_size: int = VOCABULARY) -> ModelSpec:
    """The Llama-3-shaped model with nearly `params` parameters, widths and depth near the published family."""
    best: tuple[float, ModelSpec] | None = None
    for steps in range(1, 81):
        width = steps * 512 if steps < 17 else steps * 1024 - 8192
        for layers in {max(2, round(family_layers(width) * f / 2) * 2) for f in (0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 1.15)}:
            heads = width // HEAD_DIM
            kv_heads = 8 if heads % 8 == 0 else math.gcd(heads, 4)
            ffn = round(3.5 * width / 1024) * 1024 if width >= 2048 else round(3.5 * width / 256) * 256
            spec = ModelSpec(name, width, layers, heads, kv_heads, ffn, vocab_size, head_dim=HEAD_DIM)
            miss = abs(math.log(spec.parameters().total / params)) + 0.3 * abs(math.log(layers / family_layers(width)))
            if best is None or miss < best[0]:
                best = (miss, spec)
    assert best is not None
    return best[1]


def expert_shape(
    active: float, n_experts: int, *, experts_per_token: int = 0, shared: int = 1, interleave: int = 1, name: str = "plan"
) -> ModelSpec:
    """A mixture of experts of nearly `active` active parameters: a dense shape whose feed-forward is dealt to experts.

    The active experts (shared ones too) together are as wide as the dense feed-forward, as in Llama 4.
    Where `experts_per_token` is 0, one in 32 is active.
    """
    experts_per_token = experts_per_token or max(1, n_experts // EXPERTS_PER_ACTIVE)
    if experts_per_token > n_experts:
        raise TenfoldError(f"{experts_per_token} experts per token cannot be chosen from {n_experts}.")
    dense = dense_shape(active, name)
    width = max(256, round(dense.ffn_dim / (experts_per_token + shared) / 256) * 256)
    return replace(
        dense,
        family="llama4",
        n_experts=n_experts,
        experts_per_token=experts_per_token,
        n_shared_experts=shared,
        expert_ffn_dim=width,
        moe_every=interleave,
    )


@dataclass(frozen=True)
class Shape:
    """A model and its tokens, with the reasons in words."""

    spec: ModelSpec
    tokens: float
    flops: float
    notes: tuple[str, ...]


def parent_flops(parent: str) -> tuple[ModelSpec, float]:
    """(shape, 6ND training FLOPs) of a published model. Raises TenfoldError where its tokens are unknown."""
    spec = published_model(parent)
    tokens = facts()["parents"].get(spec.name)
    if tokens is None:
        raise TenfoldError(f"The tokens of {spec.name} are not published: say --flops instead of --after.")
    return spec, 6 * spec.parameters().active * tokens


def shape_for(
    flops: float,
    law: str = LAW,
    *,
    experts: int = 0,
    experts_per_token: int = 0,
    shared: int = 1,
    interleave: int = 1,
    tokens: float | None = None,
    unique_tokens: float | None = None,
    name: str = "plan",
) -> Shape:
    """The model and tokens of `flops` (6 x active parameters x tokens) by a law, or at given `tokens`."""
    if tokens:
        active, source = flops / 6 / tokens, "tokens as asked"
    else:
        active, tokens, source = optimum(flops, law)
    if active < 1e6:
        raise TenfoldError(f"{flops:.2g} FLOPs make a model of {active:.2g} parameters: ask for at least 1e16.")
    if experts:
        spec = expert_shape(active, experts, experts_per_token=experts_per_token, shared=shared, interleave=interleave, name=name)
    else:
        spec = dense_shape(active, name)
    tokens = flops / 6 / spec.parameters().active
    notes = [
        f"Shape: {si(active)} active parameters and {si(tokens)} tokens by {law if source != 'tokens as asked' else source} "
        f"({source})."
    ]
    return Shape(spec, tokens, flops, (*notes, data_note(tokens, unique_tokens)))


def data_note(tokens: float, unique_tokens: float | None = None) -> str:
    """What the corpus allows: how often it is repeated, and whether that is harmless."""
    unique = unique_tokens or facts()["data"]["unique_tokens"]
    epochs, limit = tokens / unique, facts()["data"]["harmless_epochs"]
    corpus = "the corpus given" if unique_tokens else "the largest published corpus"
    words = f"Data: {si(tokens)} tokens are {epochs:.2g} times {corpus} ({si(unique)})"
    if epochs <= 1:
        return words + "."
    return words + (", a repetition that costs little." if epochs <= limit else f": beyond {limit:g} epochs, loss suffers.")


def batch_tokens(flops: float) -> float:
    """Tokens per step, grown from Llama 3 405B's with the cube root of compute."""
    row = facts()["batch"]
    return row["tokens"] * (flops / row["flops"]) ** row["exponent"]


Positive = Annotated[float, Meta(gt=0)]


@dataclass(frozen=True)
class Request:
    """What a person asked for: a parent and a factor, or FLOPs, or a shape of one's own; and how to shape it."""

    after: Annotated[str | None, Meta(description="A published model to follow.")] = None
    times: Annotated[float | None, Meta(description="How many times its compute (10 where not said).")] = None
    flops: Annotated[Positive | None, Meta(description="Training compute, as 3.8e26.")] = None
    model: Annotated[Path | None, Meta(description="A shape of one's own, as TOML (fields of ModelSpec).")] = None
    tokens: Annotated[Positive | None, Meta(description="Tokens to train on, as 15T, in place of the law's.")] = None
    law: Annotated[str | None, Meta(description="llama3, chinchilla, besiroglu, or a law.json of `tenfold law fit`.")] = None
    experts: Annotated[int, Meta(description="Experts of a mixture (0: dense).")] = 0
    experts_per_token: Annotated[int, Meta(description="Experts per token (0: one in 32).", extra={"flag": "--active-experts"})] = 0
    shared: Annotated[int, Meta(description="Experts that every token passes.", extra={"flag": "--shared-experts"})] = 1
    interleave: Annotated[int, Meta(description="Every how many layers are routed.")] = 1
    unique_tokens: Annotated[
        Positive | None, Meta(description="Unique tokens at hand, as 15T.", extra={"flag": "--data-tokens"})
    ] = None


def resolve(asked: Request, flops: float | None = None) -> Shape:
    """The shape of a request; `flops` (what a budget buys) stands in for its compute.

    Raises TenfoldError for flags that contradict each other, or where nothing says how large.
    """
    if asked.after and asked.flops:
        raise TenfoldError("--after and --flops both fix the compute: say one of them.")
    if asked.model and asked.experts:
        raise TenfoldError("--model already says how many experts there are: leave --experts out.")
    if asked.times is not None and not asked.after:
        raise TenfoldError("--times multiplies the compute of a parent: name it by --after.")
    times = TIMES if asked.times is None else asked.times
    if times <= 0:
        raise TenfoldError(f"--times must be above zero, not {times:g}.")
    if asked.tokens and asked.model and (asked.flops or asked.after or flops):
        raise TenfoldError("--model with --tokens fixes the compute: leave out --flops, --after or --budget-usd.")
    if asked.experts_per_token and not (asked.experts or asked.model):
        raise TenfoldError("--active-experts needs --experts: say how many there are.")
    name = "plan"
    if asked.after:
        parent, parents = parent_flops(asked.after)
        flops, name = times * parents, f"{parent.name} x{times:g}"
    flops = asked.flops or flops
    if asked.model:
        return _own_shape(asked, flops)
    if not flops:
        raise TenfoldError("Nothing says how large: give --after MODEL, --flops, --model with --tokens, or --budget-usd.")
    return shape_for(
        flops,
        asked.law or LAW,
        experts=asked.experts,
        experts_per_token=asked.experts_per_token,
        shared=asked.shared,
        interleave=asked.interleave,
        tokens=asked.tokens,
        unique_tokens=asked.unique_tokens,
        name=name,
    )


def _own_shape(asked: Request, flops: float | None) -> Shape:
    path = asked.model
    assert path is not None
    if path.exists():
        try:
            plain = tomllib.loads(path.read_text())
            spec = ModelSpec(**{"name": path.stem, **{k: v for k, v in plain.items() if k != "source"}})
        except (tomllib.TOMLDecodeError, TypeError) as error:
            raise TenfoldError(
                f"{path} is no model: {error}; it needs the fields of a shape, as dim, n_layers, n_heads."
            ) from error
    else:
        try:
            spec = published_model(str(path))
        except TenfoldError as error:
            raise TenfoldError(f"There is no file {path}, and {str(error)[0].lower()}{str(error)[1:]}") from error
    active = spec.parameters().active
    tokens = asked.tokens or (flops / 6 / active if flops else None)
    if tokens is None:
        raise TenfoldError("A --model needs --tokens, --flops or --budget-usd beside it, to say how long it trains.")
    note = f"Shape: {spec.name} as given, {si(active)} active parameters."
    if asked.law:
        params, best, source = optimum(6 * active * tokens, asked.law)
        note += f" For as many FLOPs, {source} takes {si(params)} parameters and {si(best)} tokens, not {si(tokens)}."
    return Shape(spec, tokens, 6 * active * tokens, (note, data_note(tokens, asked.unique_tokens)))
