"""Loads a model and serves it until a signal ends it."""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ktransformers.errors import UserError

log = logging.getLogger("ktransformers.server")
SWITCH_SECONDS = (
    0.0005  # the event loop must not wait long for the engine's thread, nor it for that
)
CLOSE_SECONDS = 1  # for streams to tell their readers that the server ends


def serve(request: Any, progress: Any = None) -> int:
    """Serves what a ServeRequest asks for; returns the exit status (130 after Ctrl-C).

    The address is taken first, the template helper started next, the model loaded last.
    Raises: UserError.
    """
    logging.basicConfig(
        level=request.options["log_level"].upper(), format="%(levelname)s %(name)s: %(message)s"
    )
    listener = bound(request.options["host"], request.options["port"])
    try:
        service = load_service(request, progress)
        return run(service, request, listener)
    finally:
        listener.close()


def bound(host: str, port: int) -> socket.socket:
    """A socket at the address, not listening yet. Raises: UserError where that cannot be."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        return listener
    except OSError as error:
        raise UserError(f"--host {host} --port {port}: {error.strerror or error}") from None


def load_service(request: Any, progress: Any = None) -> Any:
    """The model with everything around it. Raises: UserError."""
    from ktransformers.checkpoint.tokenizer import build_tokenizer
    from ktransformers.server.dialects import dialect_of
    from ktransformers.server.service import Settings, build_service
    from ktransformers.server.templates import Templates

    options = request.options
    tokenizer = build_tokenizer(request.gguf, options["model_path"])
    sources = tokenizer.chat_template
    sources = sources if isinstance(sources, dict) else {"default": sources}
    templates = Templates(sources, special_tokens(tokenizer))

    from ktransformers.cli.placement_flags import load_options
    from ktransformers.runtime.session import SamplingOptions, load_model

    try:
        model = load_model(
            request.gguf,
            model_path=options["model_path"],
            optimize_config_path=options["optimize_config_path"],
            cpu_infer=options["cpu_infer"],
            activations=options["activations"],
            cache_lens=options["cache_lens"],
            kv_type=options["kv_type"],
            chunk_size=options["chunk_size"],
            progress=progress,
            **load_options(options),
        )
        sampling = dict(request.sampling)
        settings = Settings(
            model_name=request.model_name,
            stop_ids=sampling.pop("stop_ids"),
            sampling=SamplingOptions(**sampling),
            max_new_tokens=options["max_new_tokens"],
            max_choices=options["max_batch_size"],
            force_think=options["force_think"],
        )
        return build_service(
            model, tokenizer, templates, dialect_of("\n".join(sources.values())), settings,
            max_batch=options["max_batch_size"],
            max_queue=options["max_queue"],
            context=context_of(request.gguf, options),
            prefix_cache=options["prefix_cache"],
        )  # fmt: skip
    except BaseException:
        templates.close()
        raise


def special_tokens(tokenizer: Any) -> dict[str, str]:
    """bos_token and so on, as templates read them."""
    found = {name: str(value) for name, value in tokenizer.special_tokens_map.items()}
    return {"bos_token": "", "eos_token": "", **found}


def context_of(gguf: Any, options: dict[str, Any]) -> int:
    """Positions one request may have."""
    architecture = gguf.metadata.get("general.architecture")
    made_for = gguf.metadata.get(f"{architecture}.context_length") or options["cache_lens"]
    return min(options["context_length"] or made_for, options["cache_lens"])


def run(service: Any, request: Any, listener: socket.socket) -> int:
    """The event loop until a signal. Leaves without waiting for a step that takes long."""
    import uvicorn

    from ktransformers.server.app import create_app
    from ktransformers.server.protocol import GuardedProtocol
    from ktransformers.server.security import Rules
    from ktransformers.server.static_files import StaticFiles

    options = request.options
    page = StaticFiles.of_package() if options["web"] else None
    rules = Rules(request.api_keys, (*request.hosts, *named_host(options["host"])))
    config = uvicorn.Config(
        create_app(service, rules, page),
        http=GuardedProtocol,
        ws="none",
        loop="asyncio",
        log_level="warning" if options["log_level"] == "info" else options["log_level"],
        access_log=options["log_level"] == "debug",
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=CLOSE_SECONDS,
        ssl_keyfile=options["ssl_keyfile"],
        ssl_certfile=options["ssl_certfile"],
    )
    server = make_server(config, service)
    scheme = "https" if options["ssl_certfile"] else "http"
    host, port = listener.getsockname()[:2]
    host = f"[{host}]" if ":" in host else host
    gc.collect()
    sys.setswitchinterval(SWITCH_SECONDS)
    gc.freeze()  # what loading made stays: nothing to look through again while answering
    print(service.model.describe(), file=sys.stderr)
    server.greeting = f"serving {service.settings.model_name} at {scheme}://{host}:{port}"
    server.run(sockets=[listener])
    if service.engine.alive:  # inside of a long step; nothing of it is wanted any more
        sys.stderr.flush()
        os._exit(server.status)
    return server.status


def named_host(host: str) -> tuple[str, ...]:
    return () if host in ("0.0.0.0", "::", "") else (host,)


def make_server(config: Any, service: Any) -> Any:
    """uvicorn's server, which at a signal ends all generations, so that streams end at once."""
    import uvicorn

    class Server(uvicorn.Server):
        status = 0
        greeting = ""

        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            if self.started:
                print(self.greeting, file=sys.stderr, flush=True)

        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            def handler(number: int, frame: Any) -> None:
                self.status = 128 + number if number == signal.SIGINT else 0
                service.engine.close(0.0)
                self.handle_exit(number, frame)

            old = {n: signal.signal(n, handler) for n in (signal.SIGINT, signal.SIGTERM)}
            try:
                yield
            finally:
                for number, previous in old.items():
                    signal.signal(number, previous)

    return Server(config)
