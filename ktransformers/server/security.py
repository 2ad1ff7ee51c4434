"""The one gate every request passes: key, host, sizes, times. What it does not know it refuses.

A pure ASGI middleware outside of all routes: a route added later is behind it without a word.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import socket
from dataclasses import dataclass, field
from typing import Any

from ktransformers.server.errors import ApiError, response_for

MAX_BODY_BYTES = 8 << 20
MAX_HEADER_BYTES = 16 << 10
MAX_PATH_BYTES = 2 << 10
BODY_SECONDS = 30.0  # for the whole body to arrive
LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass
class Rules:
    """api_keys: any of them opens; none at all leaves everything open. hosts: names the Host header
    may have beside localhost, the machine's own and literal addresses. open_paths: need no key."""

    api_keys: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    open_paths: frozenset[str] = frozenset({"/health"})
    max_body: int = MAX_BODY_BYTES
    body_seconds: float = BODY_SECONDS
    digests: tuple[bytes, ...] = field(init=False)
    names: frozenset[str] = field(init=False)

    def __post_init__(self):
        self.digests = tuple(hashlib.sha256(key.encode()).digest() for key in self.api_keys)
        own = {socket.gethostname().lower(), *(host.lower().strip("[]") for host in self.hosts)}
        self.names = LOCAL_NAMES | own


def key_is_right(rules: Rules, headers: list[tuple[bytes, bytes]]) -> bool:
    """Whether a request carries one of the keys, as a bearer token or in x-api-key.

    Digests of equal length are compared, all of them, so that the time tells nothing.
    """
    given = []
    for name, value in headers:
        if name == b"x-api-key":
            given.append(value.strip())
        elif name == b"authorization":
            scheme, _, rest = value.strip().partition(b" ")
            if scheme.lower() == b"bearer":
                given.append(rest.strip())
    right = False
    for value in given:
        digest = hashlib.sha256(value).digest()
        for known in rules.digests:
            right |= hmac.compare_digest(digest, known)
    return right


def host_is_known(rules: Rules, headers: list[tuple[bytes, bytes]]) -> bool:
    """Whether the Host header names this machine. A page elsewhere whose name was pointed at this
    address (DNS rebinding) comes with its own name; a literal address cannot be pointed."""
    hosts = [value for name, value in headers if name == b"host"]
    if len(hosts) != 1:
        return False
    text = hosts[0].decode("latin-1").strip().lower()
    if text.startswith("["):
        name, bracket, rest = text[1:].partition("]")
        if not bracket:
            return False
    else:
        name, colon, rest = text.partition(":")
        rest = colon + rest
    if rest and not (rest.startswith(":") and rest[1:].isdigit()):
        return False
    if name in rules.names:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class Gate:
    """ASGI middleware; see Rules."""

    def __init__(self, app: Any, rules: Rules):
        self.app, self.rules = app, rules

    async def __call__(self, scope: dict, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # no websockets here
            return
        send = with_safe_headers(send)
        error = self.refusal(scope)
        if error is None:
            try:
                receive = replayed(await self.body(receive), receive)
            except ApiError as refused:
                error = refused
        answer = self.app if error is None else response_for(scope["path"], error)
        await answer(scope, receive, send)

    def refusal(self, scope: dict) -> ApiError | None:
        """Why a request is turned away before its body is read."""
        rules, headers = self.rules, scope["headers"]
        if sum(len(name) + len(value) + 4 for name, value in headers) > MAX_HEADER_BYTES:
            return ApiError(400, f"the headers are larger than {MAX_HEADER_BYTES} bytes")
        if len(scope.get("raw_path") or b"") + len(scope["query_string"]) > MAX_PATH_BYTES:
            return ApiError(400, f"the address is longer than {MAX_PATH_BYTES} bytes")
        if not host_is_known(rules, headers):
            return ApiError(
                403, "the Host header does not name this server; see --allowed_hosts", code="host"
            )
        is_open = scope["path"] in rules.open_paths and scope["method"] in ("GET", "HEAD")
        if rules.digests and not is_open and not key_is_right(rules, headers):
            return ApiError(
                401, "a valid API key is needed: Authorization: Bearer KEY, or x-api-key: KEY",
                code="invalid_api_key",
            )  # fmt: skip
        return self.body_refusal(scope)

    def body_refusal(self, scope: dict) -> ApiError | None:
        fields = dict(scope["headers"])
        if fields.get(b"content-encoding", b"identity").lower() != b"identity":
            return ApiError(415, "encoded bodies are not accepted; send the JSON as it is")
        if b"content-length" in fields and b"transfer-encoding" in fields:
            # A proxy in front may go by the other one, and see another request begin.
            message = "Content-Length and Transfer-Encoding exclude each other"
            return ApiError(400, message, code="framing")
        length = fields.get(b"content-length", b"0")
        if not length.isdigit() or len(length) > 12:
            return ApiError(400, "Content-Length is not a number")
        if int(length) > self.rules.max_body:
            return ApiError(413, f"the body is larger than {self.rules.max_body} bytes")
        has_body = int(length) > 0 or b"transfer-encoding" in fields
        if scope["method"] == "POST" and has_body:  # without one there is nothing to forge
            kind = fields.get(b"content-type", b"").split(b";")[0].strip().lower()
            if kind != b"application/json":
                return ApiError(415, "Content-Type must be application/json")
        return None

    async def body(self, receive: Any) -> dict:
        """The whole body as one message, or why it is refused.

        It is read before the application sees the request: a framework that reads bodies answers
        whatever goes wrong meanwhile in its own way.
        """
        parts, seen, limit = [], 0, self.rules.max_body
        try:
            async with asyncio.timeout(self.rules.body_seconds):
                while (message := await receive())["type"] == "http.request":
                    parts.append(message.get("body", b""))
                    seen += len(parts[-1])
                    if seen > limit:
                        raise ApiError(413, f"the body is larger than {limit} bytes")
                    if not message.get("more_body", False):
                        return {"type": "http.request", "body": b"".join(parts)}
        except TimeoutError:
            seconds = self.rules.body_seconds
            raise ApiError(408, f"the body did not arrive in {seconds:g} s") from None
        return message  # the client is gone


def replayed(first: dict, receive: Any) -> Any:
    """`receive` that gives `first` before all else."""
    waiting = [first]

    async def receiving() -> dict:
        return waiting.pop() if waiting else await receive()

    return receiving


SAFE_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
]


def with_safe_headers(send: Any) -> Any:
    async def sending(message: dict) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), *SAFE_HEADERS]}
        await send(message)

    return sending
