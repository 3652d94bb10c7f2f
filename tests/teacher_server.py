"""A small chat server on the loopback address that answers like a teacher and, where it is told so, fails.

It does not stand in for anything of ours: distill.py talks to it over HTTP with the real openai client.
`behave(prompt, ask)` names what happens to the ask-th request (from 1) of a prompt: "ok", or one of the
faults in Handler.do_POST.
"""

import base64
import collections
import io
import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from PIL import Image


def count_lines(prompt: str, ask: int) -> dict:
    """The message of a teacher who counts the objects that it is told of: `content` with tags."""
    n = len(re.findall(r"^A (?:large|small) ", prompt, re.MULTILINE))
    thinking = f"I see them one by one. Altogether {n} of them."
    return {"content": f"<think>\n{thinking}\n</think>\n\n**The answer is:** {n}"}


class Teacher:
    """with Teacher(behave, message) as teacher: ... teacher.url"""

    def __init__(self, behave=lambda prompt, ask: "ok", message=count_lines, delay: float = 0.0):
        self.behave = behave
        self.message = message
        self.delay = delay
        self.lock = threading.Lock()
        self.asked = []  # every request
        self.served = collections.Counter()  # prompt -> full answers
        self.count = collections.Counter()  # prompt -> requests
        self.release = threading.Event()

    def __enter__(self):
        handler = type("Handler", (Handler,), {"teacher": self})
        self.server = Server(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exception):
        self.release.set()
        self.server.shutdown()
        self.server.server_close()


class Server(ThreadingHTTPServer):
    daemon_threads = True
    # with the default of 5 the system itself refuses some of 16 connections: faults that we did not order
    request_queue_size = 128

    def handle_error(self, *arguments):
        """An asker that was killed is no news."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        """Silence."""

    def reply(self, code: int, body: bytes, length: int | None = None, **headers):
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(length or len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def do_GET(self):
        self.reply(404, b'{"error": {"message": "no list of models here"}}')

    def do_POST(self):
        teacher = self.teacher
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        content = request["messages"][-1]["content"]
        image = None
        if not isinstance(content, str):
            encoded = content[0]["image_url"]["url"].partition("base64,")[2]
            image = Image.open(io.BytesIO(base64.b64decode(encoded)))
            content = content[1]["text"]
        with teacher.lock:
            teacher.count[content] += 1
            ask = teacher.count[content]
            record = {
                "prompt": content,
                "ask": ask,
                "time": time.time(),
                "key": self.headers["Authorization"],
                "request": request,
                "image": image,
            }
            teacher.asked.append(record)
        what = teacher.behave(content, ask)
        record["what"] = what
        time.sleep(teacher.delay)
        if what.isdigit():  # an error that quotes what it was sent, as some servers do
            error = {"error": {"message": f"refused: {self.headers['Authorization']}", "code": "refused"}}
            return self.reply(int(what), json.dumps(error).encode())
        if what.startswith("429,"):
            return self.reply(429, b'{"error": {"message": "slow down"}}', Retry_After=what[4:])
        if what == "drop":
            self.close_connection = True
            return self.connection.close()
        if what == "hang":
            teacher.release.wait(60)
            self.close_connection = True
            return None
        made = teacher.message(content if image is None else record, ask)
        finish = made.pop("finish", "stop")
        message = {"role": "assistant", "content": None} | made
        completion = {
            "id": f"c{len(teacher.asked)}",
            "object": "chat.completion",
            "created": 0,
            "model": request["model"],
            "choices": [{"index": 0, "message": message, "finish_reason": finish}],
            "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
        }
        body = json.dumps(completion).encode()
        if what == "cut":  # valid HTTP, half a JSON
            return self.reply(200, body[: len(body) // 2])
        if what == "short":  # fewer bytes than announced
            self.close_connection = True
            return self.reply(200, body[: len(body) // 2], length=len(body))
        try:
            self.reply(200, body)
        except OSError:
            return None  # the asker was killed
        with teacher.lock:
            teacher.served[content] += 1
        return None
