"""Sends new alerts to a webhook."""

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path

import httpx2
import msgspec

from tenfold.console.alerts import Alert
from tenfold.spec.errors import TenfoldError, without_secrets

EVERY_S = 5.0  # between two checks for alerts
TIMEOUT_S = 10.0


async def send_alerts(url: str, home: Path, look: Callable[[], list[Alert]]) -> None:
    """Post each alert once as JSON, `{"home", "kind", "sentence", "place"}`, until cancelled. After an error it is sent again.

    An alert that ended and appears again is a new one.
    """
    sent: set[Alert] = set()
    async with httpx2.AsyncClient(timeout=TIMEOUT_S) as client:
        while True:
            try:
                found = await asyncio.to_thread(look)
            except (TenfoldError, OSError):  # for instance a file that is being written
                found = list(sent)
            sent &= set(found)
            for alert in found:
                if alert not in sent and await _post(client, url, {"home": home.resolve().name, **msgspec.to_builtins(alert)}):
                    sent.add(alert)
            await asyncio.sleep(EVERY_S)


async def _post(client: httpx2.AsyncClient, url: str, body: dict[str, str]) -> bool:
    try:
        (await client.post(url, json=body)).raise_for_status()
    except httpx2.HTTPError as error:
        print(f"The webhook did not accept an alert: {without_secrets(str(error))}", file=sys.stderr, flush=True)
        return False
    return True
