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
        error = self.refusal(scope)
        if error is None:
            try:
                await self.app(scope, self.limited(receive), with_safe_headers(send))
            except Refused as refused:
                error = refused.error
        if error is not None:
            await response_for(scope["path"], error)(scope, receive, with_safe_headers(send))

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
        length = fields.get(b"content-length", b"0")
        if not length.isdigit() or len(length) > 12:
            return ApiError(400, "Content-Length is not a number")
        if int(length) > self.rules.max_body:
            return ApiError(413, f"the body is larger than {self.rules.max_body} bytes")
        if scope["method"] == "POST":
            kind = fields.get(b"content-type", b"").split(b";")[0].strip().lower()
            if kind != b"application/json":
                return ApiError(415, "Content-Type must be application/json")
        return None

    def limited(self, receive: Any) -> Any:
        """`receive` that counts the body's bytes and does not wait for them for ever."""
        seen, done, deadline = 0, False, None

        async def counted() -> dict:
            nonlocal seen, done, deadline
            if done:
                return await receive()
            loop = asyncio.get_running_loop()
            deadline = deadline or loop.time() + self.rules.body_seconds
            try:
                message = await asyncio.wait_for(receive(), deadline - loop.time())
            except TimeoutError:
                seconds = self.rules.body_seconds
                raise Refused(ApiError(408, f"the body did not arrive in {seconds:g} s")) from None
            if message["type"] == "http.request":
                seen += len(message.get("body", b""))
                done = not message.get("more_body", False)
                if seen > self.rules.max_body:
                    raise Refused(
                        ApiError(413, f"the body is larger than {self.rules.max_body} bytes")
                    )
            return message

        return counted


class Refused(Exception):
    """Raised out of `receive`; no handler of the application's knows it."""

    def __init__(self, error: ApiError):
        super().__init__(error.message)
        self.error = error


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
