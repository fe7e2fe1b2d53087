"""Keeps the page to itself: neither browsers nor the server load anything from elsewhere."""

import json
import os
import re
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

Message = MutableMapping[str, Any]
# Gradio's pages have scripts and styles in them; the pictures of the page are data.
_POLICY = b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; base-uri 'self'; object-src 'none'"
_ADDRESSES = re.compile(r"[=/]\s*https?:", re.IGNORECASE)  # .../file=https://..., .../file/https://...
_UPLOAD = "/gradio_api/upload"  # whose bytes Gradio limits itself
_MAX_BODY = 2**20  # bytes of a request that is no upload; the page's own have a few thousand
_MAX_PATH = 4096  # letters, as Linux has it


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


class UploadsOnly:
    """Refuses requests that name a file which is no upload.

    Gradio takes addresses where it takes files, and would load them without regard to the limits of an upload. Other
    files of the machine it refuses as well, with a traceback on the terminal.

    Args:
        app: The application that answers other requests.
        uploads: Folder that uploads are in.
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
            return 400, "the request is no JSON"
        return None

    def _has_only_uploads(self, value: Any) -> bool:
        """Whether every file in what JSON holds is an upload."""
        if isinstance(value, list):
            return all(map(self._has_only_uploads, value))
        if not isinstance(value, dict):
            return True
        path = value.get("path")
        if isinstance(path, str) and not self._is_upload(path):
            return False
        return all(map(self._has_only_uploads, value.values()))

    def _is_upload(self, path: str) -> bool:
        # By its letters, as visitors make no links. A path that no system takes would keep Gradio, and all, waiting.
        possible = len(path) <= _MAX_PATH and "\0" not in path
        return possible and Path(os.path.abspath(path)).is_relative_to(self.uploads)


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
