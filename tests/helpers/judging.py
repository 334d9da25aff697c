"""An OpenAI-compatible server in this process, and answers to put before a judge."""

import contextlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY = "sk-a-secret-that-must-not-show"


@contextlib.contextmanager
def served(reply):
    """A server on a free port: ``reply(body, headers)`` gives (status, object, headers). Yields url and request log."""
    log = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self._answer(200, {"data": []}, {})

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            log.append(body)
            self._answer(*reply(body, self.headers))

        def _answer(self, status, content, headers):
            raw = content if isinstance(content, bytes) else json.dumps(content).encode()
            with contextlib.suppress(ConnectionError):
                self.send_response(status)
                for name, value in {"content-length": str(len(raw)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(raw)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", log
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def said(text, top=None):
    """A chat completion; ``top`` has the log-probabilities of its first token's rivals."""
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    if top is not None:
        tokens = [{"token": token, "logprob": logprob} for token, logprob in top.items()]
        choice["logprobs"] = {"content": [{"token": text[:1], "logprob": 0.0, "top_logprobs": tokens}]}
    return 200, {"choices": [choice]}, {}


def shown(body):
    """Instruction and the two answers of a judge's prompt."""
    pattern = r"# Instruction\n\n(.*)\n\n# Answer A\n\n(.*)\n\n# Answer B\n\n(.*)\n\n# Your decision"
    return re.search(pattern, body["messages"][0]["content"], re.DOTALL).groups()


def write_answers(path, answers):
    """A file of answers from {prompt: answer}."""
    lines = [json.dumps({"prompt": prompt, "answer": answer}) for prompt, answer in answers.items()]
    path.write_text("\n".join(lines) + "\n")
    return str(path)
