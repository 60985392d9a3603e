"""The ASGI app: paths, health, metrics, and what holds for every answer."""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

from fastapi import FastAPI, Request, Response
from fastapi.middleware.cors import CORSMiddleware
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from triton_rerank_gateway.dialects.routes import ROUTES, Route
from triton_rerank_gateway.dialects.v1_rerank import V1_RERANK
from triton_rerank_gateway.failures import STATUSES, GatewayError, Kind
from triton_rerank_gateway.gateway import Asked, CallerGoneError, Gateway
from triton_rerank_gateway.http import openapi
from triton_rerank_gateway.http.reads import VERSION, add_reads, json_response
from triton_rerank_gateway.page import add_page

Endpoint = Callable[[Request], Awaitable[Response]]

_ID = re.compile(r"[A-Za-z0-9_.:/+=-]{1,128}")
_SLASHES = re.compile(r"/{2,}")
_STATUS_KINDS: dict[int, Kind] = {404: "not_found", 405: "method"}


def make_app(gateway: Gateway) -> ASGIApp:
    """The app of one gateway; its lifespan sends the canaries and closes the clients."""
    app = FastAPI(
        title="triton-rerank-gateway",
        version=VERSION,
        lifespan=_lifespan(gateway),
        docs_url=None,  # its pages load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
    )
    endpoints = {route.path: _endpoint(gateway, route) for route in ROUTES}
    for route in ROUTES:
        app.add_api_route(route.path, endpoints[route.path], methods=["POST"], **openapi.described(route))
    add_reads(app, gateway)
    add_page(app)
    app.add_exception_handler(HTTPException, _not_routed)
    app.add_exception_handler(GatewayError, _refused)
    served = _directly(app, endpoints)
    if gateway.settings.cors_origin:
        served = CORSMiddleware(
            served, allow_origins=gateway.settings.cors_origin, allow_methods=["*"], allow_headers=["*"]
        )
    return served


def _endpoint(gateway: Gateway, route: Route) -> Endpoint:
    async def endpoint(request: Request) -> Response:
        given = request.headers.get("x-request-id", "")
        asked = Asked(
            route,
            dict(request.headers),
            _chunks(request),
            lambda: _gone(request),
            given if _ID.fullmatch(given) else secrets.token_hex(16),
            time.monotonic(),
            request.path_params.get("model"),
        )
        reply = await gateway.handle(asked)
        headers = dict(reply.headers)
        if reply.status == STATUSES["slow_body"]:
            headers["connection"] = "close"  # its rest would be taken for the next request
        return json_response(reply.content, reply.status, headers)

    return endpoint


async def _chunks(request: Request) -> AsyncIterator[bytes]:
    try:
        async for chunk in request.stream():
            yield chunk
    except ClientDisconnect as exc:
        raise CallerGoneError from exc


async def _gone(request: Request) -> None:
    """Return when the caller has hung up; only after the whole body was read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _lifespan(gateway: Gateway) -> Callable[[FastAPI], contextlib.AbstractAsyncContextManager[None]]:
    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        """Watch the models while the app runs, and close them after it."""
        settings = gateway.settings
        watching = asyncio.create_task(gateway.models.watch(settings.canary_interval_s, settings.canary_max_age_s / 2))
        try:
            yield
        finally:
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching
            await gateway.models.aclose()

    return lifespan


async def _not_routed(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, HTTPException)
    kind = _STATUS_KINDS.get(exc.status_code, "invalid")
    path, headers = request.scope["path"], {name.lower(): value for name, value in (exc.headers or {}).items()}
    message = (
        f"{request.method} is not for {path!r:.80}: it wants {headers.setdefault('allow', 'GET')}"
        if kind == "method"
        else f"nothing is at {path!r:.80}; rerank at /rerank, /v1/rerank or /v2/rerank, with a base URL without /v1"
    )
    return json_response(V1_RERANK.error(GatewayError(kind, message)), exc.status_code, headers)


async def _refused(_: Request, exc: Exception) -> Response:
    assert isinstance(exc, GatewayError)
    headers = {"www-authenticate": "Bearer"} if exc.kind == "unauthorized" else {}
    return json_response(V1_RERANK.error(exc), V1_RERANK.status(exc), headers)


def _directly(app: FastAPI, endpoints: Mapping[str, Endpoint]) -> ASGIApp:
    """Answers POSTs to the dialects' paths without FastAPI's routing and layers, which cost more than all else here.

    Paths with doubled slashes, or one at the end, are answered in place: clients do not follow a redirect of a POST.
    """

    async def served(scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the rerank paths past FastAPI's routing, everything else through it."""
        if scope["type"] == "http":
            path = _SLASHES.sub("/", scope["path"])
            scope = {**scope, "path": path.rstrip("/") or "/"}
            endpoint = endpoints.get(scope["path"]) if scope["method"] == "POST" else None
            if endpoint is not None:
                await (await endpoint(Request(scope, receive)))(scope, receive, send)
                return
        await app(scope, receive, send)

    return served
