"""Personal data in chats: e-mail addresses, phone numbers and payment card numbers, found by libraries. Names are not found."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from tenfold.spec.errors import NotInstalled

SHORTEST = 6  # characters: shorter texts hold no e-mail address, phone or card number
REGIONS = (None, "US", "IN")  # countries whose phone numbers are found without a country code; None: only with one


def found(text: str) -> list[tuple[int, int, str]]:
    """Spans (start, end, kind) of personal data in a text, without overlap. Raises NotInstalled where a library is missing."""
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
    """`value` with `[email]`, `[phone]` or `[card]` in place of personal data in all its texts; `report` counts them by kind."""
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
