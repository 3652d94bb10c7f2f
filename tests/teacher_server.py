"""A small chat server on the loopback address that answers like a teacher and, where it is told so, fails.

It does not stand in for anything of ours: distill.py talks to it over HTTP with the real openai client.
`behave(prompt, ask)` names what happens to the ask-th request (from 1) of a prompt: "ok", one of the faults
in Handler.do_POST, or one of KINDS, the ways in which teachers really answer.
"""

import base64
import collections
import gzip
import io
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

from PIL import Image


def count_lines(prompt: str, ask: int) -> dict:
    """The message of a teacher who counts the objects that it is told of: `content` with tags."""
    n = len(re.findall(r"^A (?:large|small) ", prompt, re.MULTILINE))
    thinking = f"I see them one by one. Altogether {n} of them."
    return {"content": f"<think>\n{thinking}\n</think>\n\n**The answer is:** {n}"}


USAGE = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}


class Good:
    """A right answer, of which a kind makes its own."""

    def __init__(self, tagged: str):
        self.tagged = tagged
        self.thinking, _, self.final = tagged.removeprefix("<think>\n").partition("\n</think>\n\n")

    def say(self, content="as it is", finish="stop", usage=USAGE, top=None, **message) -> dict:
        """A completion. message: further fields beside the content; top: further fields of the completion."""
        content = self.tagged if content == "as it is" else content
        choice = {"index": 0, "message": {"role": "assistant", "content": content} | message}
        return {"choices": [choice | {"finish_reason": finish}], "usage": usage} | (top or {})

    def split(self, **reasoning) -> dict:
        """The reasoning beside the content, in fields of such names."""
        return self.say(self.final, **reasoning)

    def stream(self, *deltas: dict, end="\n\n", finish="stop", done=True) -> bytes:
        events = [{"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
        if finish:
            events.append({"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
            events.append({"choices": [], "usage": USAGE})
        lines = [f"data: {json.dumps(event)}" for event in events] + ["data: [DONE]"] * done
        return (end.join([": keep-alive", *lines]) + end).encode()


class Kind(NamedTuple):
    """A way in which a teacher answers, and what is to become of it."""

    becomes: str  # "kept", the filter's reason against it, or "failed: " and what errors.jsonl says
    reply: Callable[[Good], dict | bytes | str]  # the body; or a str, the name of a fault in Handler.do_POST
    requests: int = 1  # that arrive until it is kept or given up, with --retries=2
    once: bool = False  # the first request only, then a good answer
    told: tuple[int, int] = (100, 10)  # tokens in and out, by what the reply says; 0 where it says nothing
    status: int = 200
    headers: dict = {}


def error(message="overloaded", **fields) -> Callable[[Good], dict]:
    return lambda good: {"error": {"message": message} | fields}


def text(part: str) -> dict:
    return {"type": "text", "text": part}


def in_2_seconds() -> str:
    return formatdate(time.time() + 2, usegmt=True)


HTML = b"<html><head><title>502</title></head><body><h1>Bad Gateway</h1></body></html>"
EVENTS = {"Content-Type": "text/event-stream"}
FREE = (0, 0)
KINDS = {
    # token counts
    "plain": Kind("kept", lambda good: good.say()),
    "usage null": Kind("kept", lambda good: good.say(usage=None), told=FREE),
    "usage absent": Kind("kept", lambda good: {"choices": good.say()["choices"]}, told=FREE),
    "usage of nulls": Kind("kept", lambda good: good.say(usage=dict.fromkeys(USAGE)), told=FREE),
    "usage in strings": Kind("kept", lambda good: good.say(usage={k: str(v) for k, v in USAGE.items()})),
    "usage in floats": Kind("kept", lambda good: good.say(usage={k: float(v) for k, v in USAGE.items()})),
    "usage of other names": Kind(
        "kept", lambda good: good.say(usage={"input_tokens": 100, "output_tokens": 10})
    ),
    "usage total only": Kind("kept", lambda good: good.say(usage=USAGE | {"completion_tokens": None})),
    "usage without reasoning": Kind(
        "kept", lambda good: good.say(usage=USAGE | {"total_tokens": 160}), told=(100, 60)
    ),
    "usage no dict": Kind("kept", lambda good: good.say(usage=[100, 10]), told=FREE),
    # where the text stands
    "parts": Kind("kept", lambda good: good.say([text(good.tagged[:9]), text(good.tagged[9:])])),
    "parts that are strings": Kind("kept", lambda good: good.say([good.tagged[:9], good.tagged[9:]])),
    "thinking part": Kind(
        "kept",
        lambda good: good.say([{"type": "thinking", "thinking": [text(good.thinking)]}, text(good.final)]),
    ),
    "reasoning": Kind("kept", lambda good: good.split(reasoning=good.thinking)),
    "reasoning_content": Kind("kept", lambda good: good.split(reasoning_content=good.thinking)),
    "reasoning dict": Kind("kept", lambda good: good.split(reasoning={"content": good.thinking})),
    "reasoning summary": Kind(
        "kept", lambda good: good.split(reasoning={"effort": "high", "summary": [text(good.thinking)]})
    ),
    "reasoning_details": Kind(
        "kept",
        lambda good: good.split(
            reasoning=None,
            reasoning_details=[
                {"type": "reasoning.text", "text": good.thinking},
                {"type": "reasoning.encrypted", "data": "QUJD"},
            ],
        ),
    ),
    "reasoning in tags": Kind("kept", lambda good: good.split(reasoning=f"<think>{good.thinking}</think>")),
    "thinking field": Kind("kept", lambda good: good.split(thinking=good.thinking)),
    "thinking tags": Kind("kept", lambda good: good.say(good.tagged.replace("think>", "thinking>"))),
    "bracket tags": Kind("kept", lambda good: good.say(f"[THINK]{good.thinking}[/THINK]{good.final}")),
    "harmony": Kind(
        "kept",
        lambda good: good.say(
            f"<|channel|>analysis<|message|>{good.thinking}<|end|>"
            "<|start|>assistant<|channel|>final<|message|>"
            f"{good.final}<|return|>"
        ),
    ),
    "harmony without its tokens": Kind(
        "kept", lambda good: good.say(f"analysis{good.thinking}assistantfinal{good.final}")
    ),
    "reasoning only": Kind("no conclusion", lambda good: good.say(None, reasoning=good.thinking)),
    "text of a completion": Kind("kept", lambda good: {"choices": [{"text": good.tagged}], "usage": USAGE}),
    "delta": Kind("kept", lambda good: {"choices": [{"delta": {"content": good.tagged}}], "usage": USAGE}),
    "two choices": Kind(
        "kept",
        lambda good: good.say(top={"choices": [{"message": {"content": "?"}}, *good.say()["choices"]]}),
    ),
    "no finish": Kind("kept", lambda good: good.say(finish=None)),
    "error null": Kind("kept", lambda good: good.say(top={"error": None, "id": None, "model": 3})),
    # how it travels
    "text/plain": Kind("kept", lambda good: good.say(), headers={"Content-Type": "text/plain"}),
    "byte order mark": Kind("kept", lambda good: b"\xef\xbb\xbf" + json.dumps(good.say()).encode()),
    "blank lines first": Kind("kept", lambda good: b"\n\n\n" + json.dumps(good.say()).encode()),
    "gzip": Kind(
        "kept",
        lambda good: gzip.compress(json.dumps(good.say()).encode()),
        headers={"Content-Encoding": "gzip"},
    ),
    "201": Kind("kept", lambda good: good.say(), status=201),
    "events": Kind("kept", lambda good: good.stream(*({"content": c} for c in good.tagged)), headers=EVENTS),
    "events with reasoning": Kind(
        "kept",
        lambda good: good.stream({"reasoning": good.thinking}, {"content": good.final}, end="\r\n\r\n"),
    ),
    "emoji in two halves": Kind(
        "kept",
        lambda good: good.stream(
            {"reasoning": "Four \ud83d"}, {"reasoning": "\ude00"}, {"content": good.final}
        ),
    ),
    "lone surrogate": Kind("broken characters", lambda good: good.split(reasoning="I see \ud83d 4.")),
    "NUL": Kind("broken characters", lambda good: good.split(reasoning="I see \0 4.")),
    "no UTF-8": Kind(
        "broken characters",
        lambda good: json.dumps(good.split(reasoning="@")).encode().replace(b"@", b"\xe9"),
    ),
    "10 MB": Kind("too long", lambda good: good.split(reasoning="I see them. " * 850_000)),
    # refusals and limits: kept with their reason, never repeated
    "refusal": Kind("refused", lambda good: good.say(None, refusal="I cannot help with that.")),
    "refusal part": Kind("refused", lambda good: good.say([{"type": "refusal", "refusal": "I cannot."}])),
    "filter": Kind("content filter", lambda good: good.say("", finish="content_filter")),
    "filter in mid-answer": Kind("content filter", lambda good: good.say("I see", finish="SAFETY")),
    "filter without message": Kind(
        "content filter", lambda good: {"choices": [{"finish_reason": "content_filter"}], "usage": USAGE}
    ),
    "filter by status": Kind(
        "content filter", error("The response was filtered", code="content_filter"), status=400, told=FREE
    ),
    "filter of an input": Kind(
        "content filter", error("Your input was flagged", code=403), status=403, told=FREE
    ),
    "filter in other words": Kind("content filter", error("Content Exists Risk"), status=400, told=FREE),
    "filter in a 200": Kind("content filter", error("blocked", code="content_filter"), told=FREE),
    "hidden reasoning": Kind("cut off before any text", lambda good: good.say("", finish="length")),
    "hidden reasoning, null": Kind(
        "cut off before any text", lambda good: good.say(None, finish="MAX_TOKENS")
    ),
    "cut off": Kind("cut off", lambda good: good.say("<think> I see", finish="length")),
    # no answers: asked three times in all, since what comes with a 200 may be luck
    "error in a 200": Kind("failed: overloaded", error(), requests=3, told=FREE),
    "error that is a string": Kind(
        "failed: overloaded", lambda good: {"error": "overloaded"}, requests=3, told=FREE
    ),
    "error in a list": Kind("failed: overloaded", lambda good: [error()(good)], requests=3, told=FREE),
    "error that costs": Kind("failed: overloaded", lambda good: error()(good) | {"usage": USAGE}, requests=3),
    "error in a choice": Kind(
        "failed: overloaded",
        lambda good: {"choices": [error()(good) | {"message": {"content": "I"}}], "usage": USAGE},
        requests=3,
    ),
    "error in the events": Kind(
        "failed: overloaded",
        lambda good: b'data: {"error": {"message": "overloaded"}}\n\n',
        requests=3,
        told=FREE,
    ),
    "detail": Kind("failed: overloaded", lambda good: {"detail": "overloaded"}, requests=3, told=FREE),
    "web page": Kind(
        "failed: Bad Gateway", lambda good: HTML, requests=3, told=FREE, headers={"Content-Type": "text/html"}
    ),
    "half a JSON": Kind(
        "failed: no chat", lambda good: json.dumps(good.say())[:99].encode(), requests=3, told=FREE
    ),
    "half a stream": Kind(
        "failed: breaks off",
        lambda good: good.stream({"content": "I"}, finish="", done=False),
        requests=3,
        told=FREE,
    ),
    "a string": Kind("failed: no JSON object", lambda good: b'"I see 4."', requests=3, told=FREE),
    "null": Kind("failed: no JSON object", lambda good: b"null", requests=3, told=FREE),
    "deep": Kind("failed: recursion", lambda good: b"[" * 100_000, requests=3, told=FREE),
    "no body": Kind("failed: an empty body", lambda good: b"", requests=3, told=FREE),
    "204": Kind("failed: an empty body", lambda good: b"", requests=3, told=FREE, status=204),
    "no choices": Kind("failed: an empty answer", lambda good: good.say(top={"choices": []}), requests=3),
    "choices null": Kind("failed: an empty answer", lambda good: good.say(top={"choices": None}), requests=3),
    "no text": Kind("failed: an empty answer", lambda good: good.say("\n"), requests=3),
    # statuses: repeated by the openai client where that may help
    "400": Kind("failed: HTTP 400", error("too long"), status=400, told=FREE),
    "400 that costs": Kind("failed: HTTP 400", lambda good: error()(good) | {"usage": USAGE}, status=400),
    "502": Kind("failed: HTTP 502: 502 Bad Gateway", lambda good: HTML, status=502, requests=3, told=FREE),
    "gzip that is none": Kind(
        "failed: Decoding", lambda good: b"I see", requests=3, told=FREE, headers={"Content-Encoding": "gzip"}
    ),
    "429 for long": Kind("failed: HTTP 429", error(), status=429, headers={"Retry-After": 9999}, told=FREE),
    # only the first time
    "503 once": Kind("kept", error(), status=503, requests=2, once=True, told=FREE),
    "429 once": Kind(
        "kept", error(), status=429, requests=2, once=True, told=FREE, headers={"Retry-After": 2}
    ),
    "429 until a date": Kind(
        "kept", error(), status=429, requests=2, once=True, told=FREE, headers={"Retry-After": in_2_seconds}
    ),
    "error once": Kind("kept", lambda good: error()(good) | {"usage": USAGE}, requests=2, once=True),
    "half a JSON once": Kind("kept", lambda good: b'{"choices": [', requests=2, once=True, told=FREE),
    "reset": Kind("kept", lambda good: "reset", requests=2, once=True, told=FREE),
    "drop": Kind("kept", lambda good: "drop", requests=2, once=True, told=FREE),
    "short": Kind("kept", lambda good: "short", requests=2, once=True, told=FREE),
    "trickle": Kind("kept", lambda good: "trickle", requests=2, once=True, told=FREE),
}


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
        self.told = [0, 0]  # tokens in and out, as the replies say
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
        if code != 204:  # which has no body, by the standard
            headers = {"Content-Type": "application/json", "Content-Length": length or len(body)} | headers
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
        if what in KINDS and KINDS[what].once and ask > 1:
            what = "ok"
        if what in KINDS:
            kind = KINDS[what]
            body = kind.reply(Good(teacher.message(content, ask)["content"]))
            if not isinstance(body, str):
                return self.reply_as(kind, body)
            what = body
        if what.isdigit():  # an error that quotes what it was sent, as some servers do
            error = {"error": {"message": f"refused: {self.headers['Authorization']}", "code": "refused"}}
            return self.reply(int(what), json.dumps(error).encode())
        if what.startswith("429,"):
            return self.reply(429, b'{"error": {"message": "slow down"}}', Retry_After=what[4:])
        if what == "drop":
            self.close_connection = True
            return self.connection.close()
        if what == "reset":
            self.reply(200, b'{"choices": [', length=999)
            linger = struct.pack("ii", 1, 0)  # close with a reset
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.close_connection = True
            return self.connection.close()
        if what == "trickle":
            self.reply(200, b" ", length=10**6)
            with suppress(OSError):  # until the asker hangs up
                while not teacher.release.wait(0.2):
                    self.wfile.write(b" ")
            self.close_connection = True
            return None
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
            "usage": USAGE,
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
            teacher.told = [teacher.told[0] + 100, teacher.told[1] + 10]
        return None

    def reply_as(self, kind: Kind, body):
        headers = {name: value() if callable(value) else value for name, value in kind.headers.items()}
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
        with self.teacher.lock:
            self.teacher.told = [sum(pair) for pair in zip(self.teacher.told, kind.told, strict=True)]
        self.reply(kind.status, body, **headers)
