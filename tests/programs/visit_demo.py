"""Serve a page whose model is busy, visit it a hundred times, send malformed events, and leave while one is pending."""

import http.client
import json
import socket
import threading
from types import SimpleNamespace
from typing import Any

from PIL import Image

from shuffle_attention.sanet.demo.guard import Guard, Hosts
from shuffle_attention.sanet.demo.predictors import Result
from shuffle_attention.sanet.demo.server import gradio_environment, listen, serve
from shuffle_attention.sanet.demo.uploads import Uploads, upload_folder

free = threading.Event()


def look(*_: object) -> Result:
    free.wait(30)
    return Result("busy", "")


def post(port: int, path: str, body: str | bytes, kind: str = "application/json") -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("POST", f"/gradio_api/{path}", body, {"Content-Type": kind})
    with connection.getresponse() as response:
        response.read()
    connection.close()
    return response.status


with upload_folder() as folder, gradio_environment(folder):
    from shuffle_attention.sanet.demo.page import Page

    network: Any = SimpleNamespace(
        label="busy", classes=["a"], layers=[], detects=False, gated=True, bit_depth=12, look=look
    )
    page = Page([network], [(Image.new("RGB", (4, 4)), "example")])
    before = set(threading.enumerate())
    guard = Guard(page.app, Hosts("127.0.0.1"), Uploads(folder), page.accepts)
    with listen("127.0.0.1", 0) as listener, serve(guard, listener):
        port = listener.getsockname()[1]
        (begin,) = (n for n, fn in page.blocks.fns.items() if fn.name == "_begin")
        look_at, *_ = (n for n, fn in page.blocks.fns.items() if fn.name == "_look")
        (receive,) = (n for n, fn in page.blocks.fns.items() if fn.name == "_receive")
        values = [None, ["busy"], "a", "gradcam", "automatic", 0.5]

        def event(fn_index: Any, data: Any, session_hash: Any = "visitor") -> str:
            return json.dumps({"fn_index": fn_index, "data": data, "session_hash": session_hash})

        for visitor in range(100):
            post(port, "queue/join", event(begin, [None], f"visitor{visitor}"))
        queued = [post(port, "queue/join", event(look_at, values, f"visitor{visitor}")) for visitor in range(100)]
        print(f"queued {queued.count(200)} of {len(queued)}")
        wrong = [
            *(event(number, values) for number in (-1, 999, True, "0", None, 1e400)),
            event(look_at, values[1:]),
            event(look_at, values, ""),
            event(look_at, [None, ["other"], *values[2:]]),
            event(look_at, [*values[:-1], "much"]),
            event(receive, ["a.png"]),
        ]
        statuses = [post(port, "queue/join", body) for body in wrong]
        statuses.append(post(port, "upload", b"garbage", "multipart/form-data; boundary=b"))
        print(f"refused {sum(400 <= status < 500 for status in statuses)} of {len(statuses)}")
        free.set()
        visitor = socket.create_connection(("127.0.0.1", port))
        visitor.sendall(b"POST /gradio_api/queue/join HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n")
    print([thread.name for thread in set(threading.enumerate()) - before if thread.daemon])
