"""An OpenAI-compatible server that fails in the ways that real ones do.

    python chat_server.py LOG

Prints its port, replies with the last message in capitals, and logs every request as a line of LOG.
"""

import json
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

lock = threading.Lock()
asked: Counter[str] = Counter()
now = 0


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        # As `transformers serve` does without a Hub cache.
        self.refuse(500, "Internal server error") if self.allowed() else self.refuse(401, "Wrong key: sk-sec")

    def do_POST(self):
        global now
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        said = body["messages"][-1]["content"]
        with lock:
            now += 1
            asked[said] += 1
            times, together = asked[said], now
            with open(sys.argv[1], "a") as log:
                log.write(json.dumps({**body, "key": self.headers["Authorization"], "together": together}) + "\n")
        time.sleep(0.02)
        with lock:
            now -= 1
        if not self.allowed():
            return self.refuse(401, "Wrong key: sk-sec")
        if "busy" in said and times < 3:
            return self.refuse(429, "Too many requests")
        if "too long" in said:
            return self.refuse(400, "The context has 10 tokens")
        if body["model"] == "new" and "max_tokens" in body:
            return self.refuse(400, "Unsupported: use max_completion_tokens", "max_tokens")
        if body["model"].startswith("redirect-"):
            self.send_response(307)
            self.send_header(
                "Location", f"http://127.0.0.1:{body['model'].removeprefix('redirect-')}/v1/chat/completions"
            )
            self.send_header("Content-Length", "0")
            return self.end_headers()
        limit = body.get("max_tokens") or body["max_completion_tokens"]
        words = said.upper().split()
        answer = {
            "id": "1", "object": "chat.completion", "created": 1, "model": body["model"],
            "choices": [{
                "index": 0, "finish_reason": "length" if len(words) > limit else "stop",
                "message": {"role": "assistant", "content": " ".join(words[:limit])},
            }],
        }  # fmt: skip
        if body["model"] == "caller":
            call = {"type": "function", "id": "2", "function": {"name": "weather", "arguments": '{"city": "Köln"}'}}
            answer["choices"][0] |= {"message": {"role": "assistant", "content": None, "tool_calls": [call]}}
            answer["choices"][0]["finish_reason"] = "tool_calls"
        if body["model"].startswith("ends-"):
            answer["choices"][0]["finish_reason"] = json.loads(body["model"].removeprefix("ends-"))
        if "nothing" in said:
            answer["choices"] = []
        if body["model"] == "half-a-pair":
            answer["choices"][0]["message"]["content"] = "\ud83d"
        if body["model"].startswith("MiB-"):
            answer["choices"][0]["message"]["content"] = "x" * (int(body["model"].removeprefix("MiB-")) << 20)
        if body["model"] == "odd-usage":
            answer["usage"] = {"prompt_tokens": 10**400, "completion_tokens": -5, "total_tokens": 1}
        elif body["model"] != "no-usage":
            used = min(len(words), limit)
            answer["usage"] = {"prompt_tokens": 7, "completion_tokens": used, "total_tokens": 7 + used}
        self.reply(200, answer)

    def allowed(self):
        return self.headers["Authorization"] != "Bearer sk-secret-wrong"

    def refuse(self, status, message, param=None):
        self.reply(status, {"error": {"message": message, "type": "error", "param": param, "code": None}})

    def reply(self, status, value):
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Retry-After-Ms", "10")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


if __name__ == "__main__":
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        print(server.server_port, flush=True)
        server.serve_forever()
