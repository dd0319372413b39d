"""What is not worth training on, and why: simple rules on the text."""

from collections import Counter

MINIMUM_CHARACTERS = 100


def quality_problem(text: str) -> str:
    """Why a text is not worth training on, or an empty string.

    Limits in the spirit of Gopher's rules (Rae et al., arXiv 2112.11446, table A1), wide enough for source code.
    """
    if len(text) < MINIMUM_CHARACTERS:
        return "too short"
    lines = text.splitlines()
    # A paragraph may be long, but prose has a space every few letters.
    if len(text) / max(1, len(lines)) > 1000 and text.count(" ") < 0.08 * len(text):
        return "lines too long (minified or data)"
    if sum(map(str.isalpha, text[:20000])) < 0.25 * min(len(text), 20000):
        return "too few letters"
    counted = Counter(line.strip() for line in lines if line.strip())
    if len(lines) > 20 and counted and sum(counted.values()) > 4 * len(counted):
        return "too repetitive"
    if text.count("\ufffd") > 0.001 * len(text):
        return "broken characters"
    return ""
