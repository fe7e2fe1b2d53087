"""Keeps the page to itself: neither browsers nor the server load anything from elsewhere."""

import json
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
# Gradio's pages have scripts and styles in them; the pictures of the page are data.
_POLICY = b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; base-uri 'self'; object-src 'none'"
_ADDRESSES = re.compile(r"[=/]\s*https?:", re.IGNORECASE)  # .../file=https://..., .../file/https://...
_UPLOAD = "/gradio_api/upload"  # whose bytes Gradio limits itself
_MAX_BODY = 2**20  # bytes of a request that is no upload; the page's own have a few thousand


class OwnOriginOnly:
    """Adds to each answer what browsers may load with it: what comes from this server.

    Args:
        app: The application whose answers these are.
    """

    def __init__(self, app: Callable[..., Awaitable[None]]):
        self.app = app

    async def __call__(self, scope: Message, receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        async def with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                policy = [(b"content-security-policy", _POLICY), (b"referrer-policy", b"no-referrer")]
                message["headers"] = [*message.get("headers", []), *policy]
            await send(message)

        await self.app(scope, receive, with_policy)


class NothingFetched:
    """Refuses requests that ask the server to fetch an address.

    Gradio takes addresses where it takes files, and would load them without regard to the limits of an upload.

    Args:
        app: The application that answers other requests.
    """

    def __init__(self, app: Callable[..., Awaitable[None]]):
        self.app = app

    async def __call__(self, scope: Message, receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        refusal = None
        if scope["type"] == "http":
            if _ADDRESSES.search(scope["path"]):
                refusal = 403, "this page serves no addresses elsewhere"
            elif scope["method"] not in ("GET", "HEAD") and scope["path"] != _UPLOAD:
                body = await _body(receive)
                refusal = _fault(body)
                receive = _again(body, receive)
        if refusal is None:
            await self.app(scope, receive, send)
            return
        headers = [(b"content-type", b"text/plain; charset=utf-8")]
        await send({"type": "http.response.start", "status": refusal[0], "headers": headers})
        await send({"type": "http.response.body", "body": refusal[1].encode()})


async def _body(receive: Callable[..., Any]) -> bytes:
    """What a request holds, or the beginning of it that is too long."""
    body, more = b"", True
    while more and len(body) <= _MAX_BODY:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body


def _again(body: bytes, receive: Callable[..., Any]) -> Callable[..., Awaitable[Message]]:
    """Hands on what was read, and then what comes next."""
    read: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return read.pop() if read else await receive()

    return receive_again


def _fault(body: bytes) -> tuple[int, str] | None:
    if len(body) > _MAX_BODY:
        return 413, f"a request may have {_MAX_BODY:,} bytes"
    try:
        if body and _asks_for_address(json.loads(body)):
            return 403, "this page reads uploads, and no addresses elsewhere"
    except (ValueError, RecursionError):
        return 400, "the request is no JSON"
    return None


def _asks_for_address(value: Any) -> bool:
    """Whether a file in what JSON holds is at an address."""
    if isinstance(value, list):
        return any(map(_asks_for_address, value))
    if not isinstance(value, dict):
        return False
    path = value.get("path")
    if isinstance(path, str) and path.strip().lower().startswith("http"):
        return True
    return any(map(_asks_for_address, value.values()))
