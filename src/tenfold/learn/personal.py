"""Personal data in chats: e-mail addresses, numbers of phones and of payment cards, found by libraries. Names are not found."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from tenfold.spec.errors import NotInstalled

SHORTEST = 6  # characters of an e-mail address
REGIONS = (None, "US", "IN")  # whose phone numbers are known without a country's code


def found(text: str) -> list[tuple[int, int, str]]:
    """Where personal data stand in a text, and of which kind; no two overlap. Raises TenfoldError where a library is missing."""
    spans: list[tuple[int, int, str]] = []
    for start, end, kind in sorted(_spans(text), key=lambda span: (span[0], -span[1])):
        if not spans or start >= spans[-1][1]:
            spans.append((start, end, kind))
    return spans


def _spans(text: str) -> Iterator[tuple[int, int, str]]:
    try:
        from phonenumbers import PhoneNumberMatcher
        from pii_core.cross import CreditCardDetector, EmailDetector
    except ImportError:
        raise NotInstalled("Finding personal data needs packages that are not installed: pip install 'tenfold[learn]'.") from None
    for detector, kind in ((EmailDetector(), "email"), (CreditCardDetector(), "card")):
        yield from ((match.start, match.end, kind) for match in detector.detect(text))
    for region in REGIONS:
        yield from ((match.start, match.end, "phone") for match in PhoneNumberMatcher(text, region))


def scrub(value: Any, report: Counter[str]) -> Any:
    """A row with `[email]`, `[phone]` or `[card]` in place of each; `report` counts them."""
    if isinstance(value, dict):
        return {key: scrub(part, report) for key, part in value.items()}
    if isinstance(value, list):
        return [scrub(part, report) for part in value]
    if not isinstance(value, str) or len(value) < SHORTEST:
        return value
    for start, end, kind in reversed(found(value)):
        value = f"{value[:start]}[{kind}]{value[end:]}"
        report[kind] += 1
    return value
