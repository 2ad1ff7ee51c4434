"""The gate: every route, every state of the key, both headers; hostile requests; also under -O."""

import json
import socket
import time
from http.client import HTTPConnection
from urllib.parse import urlsplit

import pytest

from tests.support.miniatures import miniature, write
from tests.support.serving import Server

KEY = "a-key-of-thirty-two-characters-!"
OPEN = {"/health", "/"}
HUGE = [-1, 0, 2**31 - 1, 2**63, 2**70, 1e308, float("nan"), float("inf"), "7", None, [], {}, True]


@pytest.fixture(scope="module", params=[(), ("-O",)], ids=["plain", "optimised"])
def server(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "mini.gguf"
    write(miniature("qwen3", types="Q8_0"), path)
    flags = ("--api_key", KEY, "--cache_lens", "2048", "--max_new_tokens", "16")
    with Server(path, *flags, python=request.param) as server:
        yield server
        assert "Traceback" not in server.log, server.log


def routes(server) -> list[tuple[str, str]]:
    """(method, path) of all routes in the OpenAPI document, and the document's own."""
    document = server.json("/openapi.json", authorization=f"Bearer {KEY}")
    found = [(m.upper(), path) for path, methods in document["paths"].items() for m in methods]
    assert len(found) >= 18
    return [*found, ("GET", "/openapi.json"), ("GET", "/nothing/here"), ("DELETE", "/v1/models")]


KEYS = {
    "none": {},
    "wrong": {"authorization": "Bearer wrong"},
    "prefix": {"authorization": f"Bearer {KEY[:-1]}"},
    "longer": {"authorization": f"Bearer {KEY}x"},
    "basic": {"authorization": f"Basic {KEY}"},
    "bare": {"authorization": KEY},
    "wrong x": {"x_api_key": "wrong"},
    "prefix x": {"x_api_key": KEY[:-1]},
    "empty x": {"x_api_key": ""},
    "cookie": {"cookie": f"api_key={KEY}"},
    "right": {"authorization": f"Bearer {KEY}"},
    "right x": {"x_api_key": KEY},
}


@pytest.mark.parametrize("state", KEYS)
def test_every_route_asks_for_the_key(server, state):
    for method, path in routes(server):
        path = path.replace("{name}", "x")
        body = None if method in ("GET", "DELETE") else {}
        status, headers, data = server.call(path, body, method, **KEYS[state])
        if state.startswith("right") or (path in OPEN and method == "GET"):
            assert status not in (401, 403), (method, path)
        else:
            assert status == 401, (method, path)
            assert headers["www-authenticate"] == "Bearer"
            error = json.loads(data)["error"]
            assert "API key" in (error if isinstance(error, str) else error["message"])
        assert "access-control-allow-origin" not in headers
        assert headers["x-content-type-options"] == "nosniff"


def test_errors_have_the_shape_of_their_api(server):
    openai = json.loads(server.call("/v1/models")[2])
    assert set(openai["error"]) == {"message", "type", "param", "code"}
    anthropic = json.loads(server.call("/v1/messages", {})[2])
    assert anthropic["type"] == "error"
    assert anthropic["error"]["type"] == "authentication_error"
    assert isinstance(json.loads(server.call("/api/tags")[2])["error"], str)


@pytest.mark.parametrize(
    "path, name",
    [
        ("/v1/embeddings", "embeddings"), ("/v1/responses", "the Responses API"),
        ("/v1/messages/batches", "batches"), ("/api/embed", "embeddings"),
        ("/api/pull", "fetching models"), ("/v1/audio/speech", "audio"),
    ],
)  # fmt: skip
def test_missing_parts_are_refused_by_name(server, path, name):
    status, _, data = server.call(path, {"model": "x", "input": "y"}, x_api_key=KEY)
    error = json.loads(data)["error"]
    message = error if isinstance(error, str) else error["message"]
    assert (status, message) == (404, f"{name}: not supported by this server")


def raw(server, text: bytes, wait: float = 5.0) -> bytes:
    """What the server answers to bytes as they are."""
    place = urlsplit(server.url)
    with socket.create_connection((place.hostname, place.port), timeout=wait) as link:
        link.sendall(text)
        answer = b""
        try:
            while part := link.recv(65536):
                answer += part
        except (TimeoutError, ConnectionError):
            pass
        return answer


@pytest.mark.parametrize(
    "host, allowed",
    [
        ("localhost", True), ("localhost:1234", True), ("127.0.0.1", True), ("[::1]:80", True),
        ("10.1.2.3:10002", True), ("evil.example", False), ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False), ("localhost:80@evil.example", False), ("", False),
        ("[::1", False), ("LOCALHOST", True),
    ],
)  # fmt: skip
def test_foreign_hosts_are_turned_away(server, host, allowed):
    """A page whose name was pointed at this machine (DNS rebinding) comes with its own name."""
    text = f"GET /health HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    status = raw(server, text.encode()).split(b"\r\n")[0]
    assert (b" 200 " in status) == allowed, status
    if not allowed:
        assert b" 403 " in status or b" 400 " in status


def test_a_body_of_two_lengths_hides_no_request(server):
    """What a proxy takes for the body must not be answered as a request of its own."""
    body = "0\r\n\r\nGET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nx-api-key: {KEY}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    answer = raw(server, (head + "Transfer-Encoding: chunked\r\n\r\n" + body).encode())
    assert answer.startswith(b"HTTP/1.1 400 ") and answer.count(b"HTTP/1.1") == 1, answer


def test_no_cross_origin_requests(server):
    headers = {"origin": "http://evil.example", "access_control_request_method": "POST"}
    for method in ("OPTIONS", "GET"):
        status, answer, _ = server.call("/v1/models", None, method, **headers)
        assert status == 401 and not any(h.startswith("access-control") for h in answer)
    # A form of a foreign page can send text/plain without asking: it is not read.
    status, _, _ = server.call(
        "/v1/completions", raw=b'{"prompt": "x"}', content_type="text/plain", x_api_key=KEY
    )
    assert status == 415


def test_sizes_are_bounded(server):
    post = ("/v1/completions",)
    status, _, _ = server.call(*post, raw=b"x", x_api_key=KEY, content_length=str(1 << 39))
    assert status == 413
    chunk = b"100000\r\n" + b" " * (1 << 20) + b"\r\n"
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nx-api-key: {KEY}\r\n"
    head += "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert b" 413 " in raw(server, head.encode() + chunk * 9).split(b"\r\n")[0]
    status, _, _ = server.call("/health", x_filler="y" * 20000)
    assert status == 400
    status, _, _ = server.call("/health?" + "z" * 4000)
    assert status == 400
    status, _, _ = server.call(*post, {"prompt": "x"}, x_api_key=KEY, content_encoding="gzip")
    assert status == 415
    assert server.call("/health")[0] == 200


def test_who_sends_nothing_is_not_waited_for(server):
    place = urlsplit(server.url)
    links = [socket.create_connection((place.hostname, place.port)) for _ in range(20)]
    for link in links:
        link.sendall(b"GET /health HTTP/1.1\r\nHo")
    began = time.monotonic()
    assert server.call("/health")[0] == 200 and time.monotonic() - began < 2
    links[0].settimeout(20)
    assert links[0].recv(1000) == b"", "a head that never ends keeps its connection"
    for link in links:
        link.close()


HOSTILE = [
    b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe{}", b'{"prompt": "\xff"}', b'{"prompt": NaN}',
    b"[" * 100000, b'{"a":' * 50000, b'{"prompt": "x", "prompt": 7}', b"1" * 5000,
    b'{"prompt": "x", "max_tokens": 1e999}', b'{"prompt": "x", "seed": ' + b"9" * 5000 + b"}",
    b'{"prompt": "\\ud800"}', b'{"\\ud800": 1, "prompt": "x"}', b'{"prompt": "\\u0000"}',
    b'{"prompt": [[]]}', b'{"prompt": [999999999]}', b'{"prompt": [-1]}', b'{"prompt": []}',
    b'{"prompt": ["x", 1]}', b'{"prompt": {"$ref": "#"}}', b'{"prompt": "x", "stop": [""]}',
]  # fmt: skip


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/v1/messages",
                                  "/api/chat", "/api/generate", "/tokenize"])  # fmt: skip
def test_bodies_that_are_no_requests(server, path):
    for text in HOSTILE:
        status, headers, data = server.call(path, raw=text, x_api_key=KEY)
        assert status in (200, 400), (text[:60], status, data)
        assert json.loads(data), text[:60]
        if status == 400:
            assert len(data) < 1000 and b"9999999999" not in data
    assert server.json("/health")["status"] == "ok"


FIELDS = {
    "/v1/chat/completions": ({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2},
        "temperature top_p top_k min_p max_tokens max_completion_tokens n seed stop stream "
        "logprobs top_logprobs logit_bias presence_penalty frequency_penalty tools tool_choice "
        "messages response_format stream_options model user chat_template_kwargs"),
    "/v1/completions": ({"prompt": "hi", "max_tokens": 2},
        "temperature top_p n seed stop logprobs echo logit_bias max_tokens min_tokens prompt"),
    "/v1/messages": ({"model": "default", "messages": [{"role": "user", "content": "hi"}],
                      "max_tokens": 2},
        "temperature top_p top_k stop_sequences max_tokens system tools thinking messages"),
    "/api/chat": ({"model": "default", "messages": [{"role": "user", "content": "hi"}],
                   "stream": False, "options": {"num_predict": 2}},
        "options format keep_alive think tools messages model"),
}  # fmt: skip


@pytest.mark.parametrize("path", FIELDS)
def test_every_number_is_bounded(server, path):
    base, names = FIELDS[path]
    for name in names.split():
        for value in HUGE:
            body = base | {name: value}
            status, _, data = server.call(path, body, x_api_key=KEY)
            assert status in (200, 400, 404), (name, value, status, data)


def test_names_reach_no_file(server):
    for name in ("../../etc/passwd", "..%2f..%2fetc%2fpasswd", "%00", "a" * 1000, "/etc/passwd",
                 "%2e%2e/%2e%2e/x"):  # fmt: skip
        status, _, data = server.call(f"/v1/models/{name}", x_api_key=KEY)
        assert status == 404 and b"root:" not in data
        status, _, data = server.call(f"/assets/{name}", x_api_key=KEY)
        assert status == 404 and b"root:" not in data
        status, _, data = server.call("/api/show", {"model": name}, x_api_key=KEY)
        assert status in (400, 404) and b"root:" not in data


def test_answers_never_repeat_secrets(server):
    secret = "sk-very-secret-0123456789"
    _, _, data = server.call("/v1/models", authorization=f"Bearer {secret}")
    assert secret.encode() not in data and KEY.encode() not in data
    body = {"messages": [{"role": secret, "content": secret}], "temperature": secret}
    _, _, data = server.call("/v1/chat/completions", body, x_api_key=KEY)
    assert secret.encode() not in data
    assert secret not in server.log and KEY not in server.log


def test_a_connection_that_is_cut_frees_its_place(server):
    place = urlsplit(server.url)
    body = json.dumps({"prompt": "hello", "max_tokens": 16, "stream": True, "ignore_eos": True})
    for _ in range(5):
        link = HTTPConnection(place.hostname, place.port)
        link.request("POST", "/v1/completions", body,
                     {"content-type": "application/json", "x-api-key": KEY})  # fmt: skip
        link.sock.close()
    end = time.monotonic() + 10
    while True:
        live = server.json("/props", x_api_key=KEY)["live"]
        if live["running"] == live["waiting"] == 0:
            break
        assert time.monotonic() < end, live
        time.sleep(0.05)


def test_two_names_for_one_header_do_not_confuse(server):
    head = (
        f"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\nx-api-key: {KEY}\r\n"
        "Connection: close\r\n\r\n"
    )
    assert b" 200 " not in raw(server, head.encode()).split(b"\r\n")[0]


def test_digests_are_compared_in_constant_time():
    """The comparison is the standard library's, and nothing else looks at keys."""
    import ast
    import inspect

    from ktransformers.server import security

    tree = ast.parse(inspect.getsource(security.key_is_right))
    calls = [ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)]
    assert "hmac.compare_digest" in calls and "hashlib.sha256" in calls
    whole = ast.parse(inspect.getsource(security))
    assert not [node for node in ast.walk(whole) if isinstance(node, ast.Assert)]
    uses = [n for n in ast.walk(whole) if isinstance(n, ast.Attribute) and n.attr == "digests"]
    assert len(uses) == 3  # made, asked whether there are any, and compared
