"""A chat completions server that knows the better answer and fails on purpose, the same way for the same seed.

Answers contain their worth as `worth N`. A request that contains `always A` gets verdict A in either order. The reply
to the n-th request for a question depends only on seed, question and n. Every request is a line of the log: question,
kind of reply, verdict.
"""

import argparse
import hashlib
import json
import random
import re
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

USAGE = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
MIX = {"429": 10, "500": 8, "slow": 2, "cut": 4, "not json": 5, "html": 3, "empty": 5, "two verdicts": 6, "odd": 4}
lock = threading.Lock()
requests_per_question = {}


def completion(content, finish_reason="stop"):
    message = {"role": "assistant", "content": content}
    return {
        "id": "x", "object": "chat.completion", "created": 0, "model": "judge", "usage": USAGE,
        "choices": [{"index": 0, "message": message, "finish_reason": finish_reason}],
    }  # fmt: skip


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        """It has no list of models, but checks the key."""
        refused = options.key and self.headers["Authorization"] != f"Bearer {options.key}"
        self.answer("401" if refused else "404", None)

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = body["messages"][0]["content"]
        key = hashlib.sha256(text.encode()).hexdigest()[:16]
        with lock:
            requests_per_question[key] = requests_per_question.get(key, 0) + 1
            dice = random.Random(f"{options.seed} {key} {requests_per_question[key]}")
        kinds = [*MIX, "good"]
        weights = [*MIX.values(), 53] if options.misbehave else [0] * len(MIX) + [1]
        kind = dice.choices(kinds, weights)[0]
        first, second = [int(n) for n in re.findall(r"worth (\d+)", text)] or (0, 0)
        verdict = "A" if first > second or "always A" in text else "B" if second > first else "C"
        if options.only and ("always A" in text or not options.some):
            kind = options.only
        elif options.key and self.headers["Authorization"] != f"Bearer {options.key}":
            kind = "401"
        elif options.model and body["model"] != options.model:
            kind = "404"
        time.sleep(options.delay)
        try:
            self.answer(kind, verdict, body)
        except (BrokenPipeError, ConnectionResetError):
            kind = f"{kind}, not taken"
        line = {
            "question": key,
            "kind": kind,
            "verdict": verdict if kind == "good" else None,
            "limit": body.get("max_tokens"),
        }
        with lock, open(options.log, "a") as log:
            log.write(json.dumps(line) + "\n")

    def answer(self, kind, verdict, body=None):
        good = completion(f"I considered both.\n[[{verdict}]]")
        if kind.isdigit():
            message = f"status {kind} for {self.headers['Authorization']}"
            self.send(json.dumps({"error": {"message": message}}), status=int(kind))
        elif kind == "slow":
            time.sleep(options.slow)
            self.send(json.dumps(good))
        elif kind == "cut":
            self.send(json.dumps(good), cut=True)
        elif kind == "not json":
            self.send(json.dumps(good)[:-20])
        elif kind == "html":
            self.send("<html>Welcome</html>", type="text/html")
        elif kind == "empty":
            self.send(json.dumps(completion("")))
        elif kind == "two verdicts":
            self.send(json.dumps(completion("[[A]], though one could also say [[B]]")))
        elif kind == "long":  # of 40 tokens
            limit = body["max_tokens"]
            if limit > options.context:
                return self.answer("400", None)
            self.send(json.dumps(good if limit >= 40 else completion("I considered both, and I think", "length")))
        elif kind == "odd":
            self.send(json.dumps({"choices": [{"message": None}], "usage": "none"}))
        else:
            if not options.usage:
                del good["usage"]
            self.send(json.dumps(good))

    def send(self, text, status=200, type="application/json", cut=False):
        data = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", type)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("retry-after-ms", "20")
        self.end_headers()
        if cut:
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
        else:
            self.wfile.write(data)

    def log_message(self, *args):
        pass


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("log")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--misbehave", action="store_true")
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--slow", type=float, default=1.5)
    parser.add_argument("--only", help="the reply to every request: a status, html, cut, ...")
    parser.add_argument("--some", action="store_true", help="only for requests that contain `always A`")
    parser.add_argument("--context", type=int, default=1000, help="largest limit of a long reply")
    parser.add_argument("--key")
    parser.add_argument("--model")
    parser.add_argument("--no-usage", dest="usage", action="store_false")
    options = parser.parse_args()
    open(options.log, "w").close()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    print(server.server_address[1], flush=True)
    server.serve_forever()
