"""Middleware that keeps browsers and the server from loading anything from other sites."""

import json
import os
import re
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

Message = MutableMapping[str, Any]
# Gradio's pages have inline scripts and styles; the page's images are data URIs.
_POLICY = b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; base-uri 'self'; object-src 'none'"
_ADDRESSES = re.compile(r"[=/]\s*https?:", re.IGNORECASE)  # .../file=https://..., .../file/https://...
_UPLOAD = "/gradio_api/upload"  # Gradio limits its size itself
_MAX_BODY = 2**20  # bytes of a request other than an upload; those of the page have a few thousand
_MAX_PATH = 4096  # characters, the limit of Linux


class OwnOriginOnly:
    """Add a policy to every response that lets browsers load from this server only.

    Args:
        app: The application to wrap.
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


class UploadsOnly:
    """Refuse requests that name a file which is not an upload.

    Gradio accepts addresses instead of files, and would download them without the limits of an upload. It refuses
    other files of the machine, but with a traceback on the terminal.

    Args:
        app: The application to wrap.
        uploads: Folder of the uploads.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], uploads: Path):
        self.app = app
        self.uploads = uploads

    async def __call__(self, scope: Message, receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        refusal = None
        if scope["type"] == "http":
            if _ADDRESSES.search(scope["path"]):
                refusal = 403, "this page serves no addresses elsewhere"
            elif scope["method"] not in ("GET", "HEAD") and scope["path"] != _UPLOAD:
                body = await _body(receive)
                refusal = self._fault(body)
                receive = _again(body, receive)
        if refusal is None:
            await self.app(scope, receive, send)
            return
        headers = [(b"content-type", b"text/plain; charset=utf-8")]
        await send({"type": "http.response.start", "status": refusal[0], "headers": headers})
        await send({"type": "http.response.body", "body": refusal[1].encode()})

    def _fault(self, body: bytes) -> tuple[int, str] | None:
        if len(body) > _MAX_BODY:
            return 413, f"a request may have {_MAX_BODY:,} bytes"
        try:
            if body and not self._has_only_uploads(json.loads(body)):
                return 403, "this page reads uploads, and nothing from elsewhere"
        except (ValueError, RecursionError):
            return 400, "the request is not JSON"
        return None

    def _has_only_uploads(self, value: Any) -> bool:
        """Return whether every file in a JSON value is an upload."""
        if isinstance(value, list):
            return all(map(self._has_only_uploads, value))
        if not isinstance(value, dict):
            return True
        path = value.get("path")
        if isinstance(path, str) and not self._is_upload(path):
            return False
        return all(map(self._has_only_uploads, value.values()))

    def _is_upload(self, path: str) -> bool:
        # By its characters, since visitors cannot create links. An impossible path would block Gradio for everyone.
        possible = len(path) <= _MAX_PATH and "\0" not in path
        return possible and Path(os.path.abspath(path)).is_relative_to(self.uploads)


async def _body(receive: Callable[..., Any]) -> bytes:
    """Return the body of a request, or the beginning of one that is too long."""
    body, more = b"", True
    while more and len(body) <= _MAX_BODY:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body


def _again(body: bytes, receive: Callable[..., Any]) -> Callable[..., Awaitable[Message]]:
    """Return a ``receive`` that yields the body read before, then the next messages."""
    read: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return read.pop() if read else await receive()

    return receive_again
