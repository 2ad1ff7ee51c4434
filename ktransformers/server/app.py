"""The application: routes of all APIs behind one gate."""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request

from ktransformers import __version__
from ktransformers.server import anthropic_api, native, ollama_api, openai_api
from ktransformers.server.errors import ApiError, missing, response_for, validation_error
from ktransformers.server.security import Gate, Rules
from ktransformers.server.service import Service
from ktransformers.server.static_files import StaticFiles

log = logging.getLogger("ktransformers.server")


def create_app(service: Service, rules: Rules, page: StaticFiles | None = None) -> Any:
    """The ASGI application of one server. page: the chat page's files; its paths need no key."""

    @asynccontextmanager
    async def lifespan(app: FastAPI):
        service.open()
        yield
        await service.close()

    app = FastAPI(
        title="KTransformers",
        version=__version__,
        description="OpenAI, Anthropic and Ollama APIs, and this server's own.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.service = service
    for part in apis():
        app.include_router(part.router(service))
    page = page or StaticFiles({})
    page.mount(app)
    rules.open_paths = rules.open_paths | page.paths()

    @app.exception_handler(ApiError)
    async def on_api_error(request: Request, error: ApiError):
        return response_for(request.url.path, error)

    @app.exception_handler(RequestValidationError)
    async def on_bad_request(request: Request, error: RequestValidationError):
        return response_for(request.url.path, validation_error(list(error.errors())))

    @app.exception_handler(HTTPException)
    async def on_http_error(request: Request, error: HTTPException):
        words = {405: "not with this method"}
        message = words.get(error.status_code, "the request cannot be read")
        told = ApiError(error.status_code, message)
        if error.status_code == 404:
            told = missing(request.url.path)
        response = response_for(request.url.path, told)
        for name, value in (error.headers or {}).items():
            response.headers[name] = value
        return response

    @app.exception_handler(Exception)
    async def on_fault(request: Request, error: Exception):
        log.error("a request failed", exc_info=error)
        return response_for(request.url.path, ApiError(500, "a fault of the server; see its log"))

    return Gate(app, rules)


def apis() -> list[Any]:
    """Every module with a `router(service)`."""
    return [openai_api, anthropic_api, ollama_api, native]
