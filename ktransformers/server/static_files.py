"""The chat page: its files are read once; no request's path reaches the file system."""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
    ".json": "application/json",
    ".webmanifest": "application/manifest+json",
    ".woff2": "font/woff2",
    ".woff": "font/woff",
    ".ttf": "font/ttf",
    ".txt": "text/plain; charset=utf-8",
}
PACKED = {".html", ".js", ".css", ".svg", ".json", ".txt"}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; font-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    # No string becomes HTML or script, whoever inserts it.
    "require-trusted-types-for 'script'; trusted-types 'none'"
)


@dataclass
class File:
    data: bytes
    packed: bytes | None
    kind: str
    tag: str


class StaticFiles:
    """Files by the path they are asked for; index.html is at /."""

    def __init__(self, files: dict[str, bytes]):
        self.files = {}
        for path, data in files.items():
            suffix = Path(path).suffix
            packed = gzip.compress(data, 9, mtime=0) if suffix in PACKED else None
            tag = f'"{hashlib.sha256(data).hexdigest()[:32]}"'
            self.files[path] = File(
                data, packed, TYPES.get(suffix, "application/octet-stream"), tag
            )
        if "/index.html" in self.files:
            self.files["/"] = self.files["/index.html"]

    @classmethod
    def of_package(cls) -> StaticFiles:
        """The built page that lies in the package; empty where it was not built."""
        folder = Path(__file__).with_name("static")
        paths = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.suffix in TYPES]
        return cls({"/" + p.relative_to(folder).as_posix(): p.read_bytes() for p in paths})

    def paths(self) -> frozenset[str]:
        return frozenset(self.files) | {"/"}

    def mount(self, app: Any) -> None:
        """One route for each file."""
        if "/" not in self.files:
            app.add_route("/", plain_root, methods=["GET", "HEAD"], include_in_schema=False)
        for path in self.files:
            app.add_route(path, self.answer, methods=["GET", "HEAD"], include_in_schema=False)

    async def answer(self, request: Request) -> Response:
        path = request.scope["path"]
        if path == "/" and "text/html" not in request.headers.get("accept", ""):
            return await plain_root(request)
        file = self.files[path]
        hashed = path.startswith("/assets/")
        headers = {
            "ETag": file.tag,
            "Cache-Control": "public, max-age=31536000, immutable" if hashed else "no-cache",
            "Vary": "Accept-Encoding, Accept",
        }
        if file.kind.startswith("text/html"):
            headers["Content-Security-Policy"] = POLICY
        if request.headers.get("if-none-match") == file.tag:
            return Response(status_code=304, headers=headers)
        data = file.data
        if file.packed and "gzip" in request.headers.get("accept-encoding", ""):
            data, headers["Content-Encoding"] = file.packed, "gzip"
        return Response(data, headers=headers, media_type=file.kind)


async def plain_root(request: Request) -> Response:
    """Ollama's clients ask here whether anyone is home."""
    return PlainTextResponse("Ollama is running: KTransformers\n")
