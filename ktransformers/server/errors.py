"""Errors in each API's own shape.

Messages never repeat what a request said, except names of its fields: what a client sent may be
secret, enormous, or no text at all.
"""

from __future__ import annotations

import re
from typing import Any

from fastapi.responses import JSONResponse

KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    411: "invalid_request_error",
    413: "request_too_large",
    415: "invalid_request_error",
    429: "rate_limit_error",
    500: "api_error",
    503: "overloaded_error",
}

# Parts of the APIs that this server does not have, by the beginning of their paths.
MISSING = {
    "/v1/embeddings": "embeddings", "/api/embed": "embeddings",
    "/v1/responses": "the Responses API", "/v1/realtime": "the Realtime API",
    "/v1/audio": "audio", "/v1/images": "images", "/v1/videos": "videos", "/v1/rerank": "reranking",
    "/v1/files": "files", "/v1/uploads": "files", "/v1/batches": "batches",
    "/v1/messages/batches": "batches", "/v1/fine_tuning": "fine-tuning",
    "/v1/moderations": "moderations", "/v1/assistants": "assistants", "/v1/threads": "threads",
    "/v1/vector_stores": "vector stores", "/api/pull": "fetching models",
    "/api/push": "publishing models", "/api/create": "making models",
    "/api/copy": "copying models", "/api/delete": "deleting models", "/api/blobs": "uploads",
    "/infill": "infilling", "/slots": "slots", "/lora-adapters": "adapters",
}  # fmt: skip


def missing(path: str) -> ApiError:
    """What to say of a path that is no route: by name where some API has it."""
    for beginning, name in MISSING.items():
        if path.startswith(beginning):
            return ApiError(404, f"{name}: not supported by this server", code="unsupported")
    return ApiError(404, "there is nothing at this address")


class ApiError(Exception):
    """status: HTTP's; message: one line; param: the field it is about, if one."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.retry_after = retry_after


def printable(text: str, most: int = 500) -> str:
    """One line of text that can be written as UTF-8, not longer than `most` characters."""
    text = " ".join(text.encode("utf-8", "replace").decode("utf-8").split())
    return text if len(text) <= most else text[: most - 1] + "…"


def api_of(path: str) -> str:
    """Which API a path belongs to: "anthropic", "ollama", or "openai" for all others."""
    if path == "/v1/messages" or path.startswith("/v1/messages/"):
        return "anthropic"
    return "ollama" if path.startswith("/api/") else "openai"


def body_of(api: str, error: ApiError) -> dict[str, Any]:
    """The JSON body that this API's clients expect of an error."""
    message = printable(error.message)
    kind = KINDS.get(error.status, "api_error" if error.status >= 500 else "invalid_request_error")
    if api == "ollama":
        return {"error": message}
    if api == "anthropic":
        return {"type": "error", "error": {"type": kind, "message": message}}
    param = printable(error.param, 200) if error.param else None
    return {"error": {"message": message, "type": kind, "param": param, "code": error.code}}


def response_for(path: str, error: ApiError) -> JSONResponse:
    headers = {}
    if error.retry_after is not None:
        headers["Retry-After"] = str(error.retry_after)
    if error.code == "framing":
        headers["Connection"] = "close"  # where the next request begins is not known
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(body_of(api_of(path), error), error.status, headers)


# What pydantic puts into a place for the member of a union that it tried: no field of anybody's.
_MEMBER = re.compile(
    r"constrained-\w+|(list|dict|literal|nullable|tagged-union|function-[\w-]+)\[.*\]|str|\[key\]|[A-Z]\w*"
)


def _place(problem: dict[str, Any]) -> list[str]:
    """The path of fields to a problem."""
    *above, last = [str(part) for part in problem.get("loc", ())] or [""]
    # A field that is forbidden may be called anything.
    known = problem.get("type") == "extra_forbidden" or not _MEMBER.fullmatch(last)
    place = [part for part in above if not _MEMBER.fullmatch(part)] + [last] * known
    return [part for part in place if part not in ("body", "query", "")]


def _telling(problems: list[dict[str, Any]]) -> dict[str, Any]:
    """The complaint to tell: the first, but where members of a union were tried, that of the one
    which got furthest."""
    loc = problems[0].get("loc", ())
    tried = next((i for i, part in enumerate(loc) if _MEMBER.fullmatch(str(part))), None)
    if tried is None:
        return problems[0]
    same = [problem for problem in problems if problem["loc"][:tried] == loc[:tried]]
    return max(same, key=lambda problem: len(_place(problem)))


def validation_error(problems: list[dict[str, Any]]) -> ApiError:
    """The most telling of pydantic's complaints as one line: field, and what is wrong with it."""
    problem = _telling(problems)
    field = ".".join(_place(problem))
    if problem.get("type") == "union_tag_invalid":  # pydantic's text repeats what was sent
        expected = problem["ctx"]["expected_tags"]
        return ApiError(400, f"{field}.type: Input should be one of {expected}", field, "invalid")
    # A list that may hold nothing stands for what other servers take, such as pictures.
    none = problem.get("type") == "too_long" and problem["ctx"]["max_length"] == 0
    if none or problem.get("type") == "extra_forbidden":
        return ApiError(400, f"{field}: not supported by this server", field, "unsupported")
    if problem.get("type") == "json_invalid":
        return ApiError(400, "the body is not valid JSON", code="invalid_json")
    message = str(problem.get("msg", "is not valid")).removeprefix("Value error, ")
    return ApiError(400, f"{field}: {message}" if field else message, field or None, "invalid")
