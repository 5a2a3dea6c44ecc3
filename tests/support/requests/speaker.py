"""A client that proves the token, on a raw connection, one step at a time."""

from __future__ import annotations

from support.wire import Client, Reply, message
from workerserver.cluster.ask.token.proof import Meeting, Proof, key_of

__all__ = ["Speaker", "challenge_of"]

TOKEN = "s3cret"


def challenge_of(reply: Reply) -> str:
    """The last WWW-Authenticate field, which is our scheme's if there are two."""
    return [value for name, value in reply.headers if name == "www-authenticate"][-1]


class Speaker:
    """Both halves of what is said on *client*; nothing is sent unless a method says so."""

    def __init__(self, client: Client, token: str = TOKEN, name: str = "") -> None:
        self.client = client
        self.proof = Proof(key_of(token), name)

    def greet(self) -> Meeting:
        """Send the greeting, and read what the worker proves."""
        reply = self.client.ask(self.greeting())
        assert reply.status == 401
        return self.proof.meet(challenge_of(reply))

    def greeting(self) -> bytes:
        return message("GET", "/", None, [("Authorization", self.proof.greeting())])

    def request(self, method: str, target: str, body: bytes | None = None) -> bytes:
        """A request that proves the token."""
        field = self.proof.request(method, target, body or b"")
        return message(method, target, body, [("Authorization", field)])

    def post(self, name: str, body: bytes = b"") -> bytes:
        return self.request("POST", f"/handler/{name}", body)

    def ask(self, method: str, target: str, body: bytes | None = None) -> Reply:
        """A request and its reply, which has to be proven."""
        reply = self.client.ask(self.request(method, target, body))
        assert self.holds(reply), reply
        return reply

    def holds(self, reply: Reply) -> bool:
        """Whether *reply* is the worker's own answer to the last request."""
        info = reply.header("authentication-info") or ""
        return self.proof.answered(reply.status, reply.body, info)
