"""Who may come in: requests to the console's own names, from its own pages, and with a key where one is sent."""

from tenfold.serve.api.gate import Gate
from tenfold.serve.api.keys import STRANGER, Caller


class ConsoleGate(Gate):
    """The server's gate, but that a request without a key comes in as a stranger's, who sees what is not personal."""

    def _caller(self, path: str, headers: dict[bytes, bytes]) -> Caller:
        sent = {b"authorization", b"api-key", b"x-api-key"} & headers.keys()
        if self.keys is not None and not sent:
            return STRANGER
        return super()._caller(path, headers)
