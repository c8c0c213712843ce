"""The part of a W&B server that `wandb sync` and reports need; it accepts and records every request."""

import gzip
import hashlib
import json
import threading
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ENTITY = "somebody"


class WandbServer(ThreadingHTTPServer):
    """Attributes:
    operations: variables of every GraphQL operation, by its name, in order.
    history: the lines of wandb-history.jsonl of every run, by its id.
    summary, exit_codes: the last of every run, by its id.
    uploads: request bodies by path.
    rejects: whether it rejects every key.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.operations = defaultdict(list)
        self.history = defaultdict(list)
        self.summary, self.exit_codes, self.uploads = {}, {}, {}
        self.rejects = False
        self.lock = threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *_):
        """Ignore clients that disconnect."""

    def answer(self, operation, given):
        """The result of a GraphQL operation."""
        if operation == "UpsertBucket":
            lines = len(self.history[given["name"]])
            entity = {"id": "e", "name": ENTITY}
            run = {"id": "r", "name": given["name"], "displayName": given["displayName"] or "", "sweepName": None,
                   "config": given["config"] or "{}", "historyLineCount": lines, "description": None,
                   "project": {"id": "p", "name": given["project"], "entity": entity}}  # fmt: skip
            return {"upsertBucket": {"bucket": run, "inserted": lines == 0}}
        if operation == "RunResumeStatus":
            return {"model": self.resumed(given)}
        if operation == "CreateArtifact":
            keys = ("artifactTypeName", "artifactCollectionName", "digest")
            identity = " ".join(given["input"][key] for key in keys)
            artifact = {
                "id": hashlib.md5(identity.encode()).hexdigest(),
                "state": "COMMITTED",
                "artifactSequence": {"latestArtifact": None},
            }
            return {"createArtifact": {"artifact": artifact}}
        if operation == "UseArtifact":
            return {"useArtifact": {"artifact": {"id": given["input"]["artifactID"]}}}
        if operation == "CreateRunFiles":
            files = [{"name": name, "uploadUrl": f"{self.url}/put/{given['run']}/{name}"} for name in given["files"]]
            return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}
        if operation == "ServerFeaturesQuery":
            return {"serverInfo": {"features": []}}
        if operation == "ArtifactType":
            return {"project": {"artifact": None}}
        if operation == "GetProjects":
            return {"models": {"edges": [], "pageInfo": {"hasNextPage": False, "endCursor": None}}}
        if operation == "upsertView":
            view = {"id": "report-1", "type": "runs", "name": given["name"], "displayName": given["displayName"],
                    "description": "", "spec": given["spec"], "updatedAt": "2026-01-01T00:00:00Z",
                    "project": {"name": given["projectName"], "entityName": given["entityName"]}}  # fmt: skip
            return {"upsertView": {"view": view, "inserted": True}}
        if operation in ("Viewer", "GetDefaultEntity"):
            return {"viewer": {"id": "v", "entity": ENTITY, "username": ENTITY, "flags": "{}", "email": "",
                               "admin": False, "teams": {"edges": []}, "apiKeys": {"edges": []}}}  # fmt: skip
        return {}

    def resumed(self, given):
        lines = self.history[given["name"]]
        if not lines:
            return None
        tail = json.dumps([json.dumps(json.loads(lines[-1]))])
        return {"id": "p", "name": given["project"], "entity": {"id": "e", "name": ENTITY}, "bucket": {
            "name": given["name"], "summaryMetrics": json.dumps(self.summary.get(given["name"], {})),
            "displayName": "d", "logLineCount": 0, "historyLineCount": len(lines), "eventsLineCount": 0,
            "historyTail": tail, "eventsTail": "[]", "config": "{}", "tags": [], "wandbConfig": "{}"}}  # fmt: skip


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: WandbServer

    def log_message(self, *_):
        pass

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        server, answer = self.server, {}
        with server.lock:
            if self.path == "/graphql":
                request = json.loads(body)
                operation = request["query"].split("{")[0].split("(")[0].split()[-1]
                given = request.get("variables") or {}
                server.operations[operation].append(given)
                answer = {"data": server.answer(operation, given)}
            elif self.path.endswith("/file_stream"):
                self.record(self.path.split("/")[-2], json.loads(body))
            else:
                server.uploads[self.path] = body
        if server.rejects:
            answer = {"errors": [{"message": "user is not logged in"}]}
        sent = json.dumps(answer).encode()
        self.send_response(401 if server.rejects else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(sent)))
        self.end_headers()
        self.wfile.write(sent)

    do_PUT = do_POST
    do_GET = do_POST

    def record(self, run, request):
        for name, of in request.get("files", {}).items():
            if name == "wandb-history.jsonl":
                lines = self.server.history[run]
                lines[of["offset"] :] = of["content"]
            elif name == "wandb-summary.json":
                self.server.summary[run] = json.loads(of["content"][-1])
        if request.get("complete"):
            self.server.exit_codes[run] = request.get("exitcode")
