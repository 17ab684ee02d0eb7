"""An Inference Endpoint for image classification on the loopback interface."""

import base64
import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import torch
from PIL import Image


MEAN, STD = [0.5], [0.15]


def classify(model, picture: bytes) -> torch.Tensor:
    """What a deployed model does: open the file, normalise, answer."""
    pixels = torch.from_numpy(np.array(Image.open(io.BytesIO(picture)))).float()[None, None] / 255
    with torch.no_grad():
        return model((pixels - MEAN[0]) / STD[0]).logits[0].softmax(dim=0)


class InferenceServer:
    """Speaks the protocol of an Inference Endpoint for image classification, `top_k` and all."""

    def __init__(self, model):
        server = self
        self.model, self.requests, self.tokens, self.answer = model, 0, [], None
        # What goes wrong with the next requests: a status, "reset" of the connection, or `None` for an answer.
        self.failures, self.retry_after = [], None

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                server.requests += 1
                server.tokens.append(self.headers.get("Authorization"))
                failure = server.failures.pop(0) if server.failures else None
                if failure == "reset":
                    self.close_connection = True
                    return
                if failure is not None:
                    self.send_response(failure)
                    if server.retry_after is not None:
                        self.send_header("Retry-After", server.retry_after)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                status, answer = server.answer or (200, server.classify(body, self.headers["Content-Type"]))
                content = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *arguments):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}/"

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()

    def classify(self, body: bytes, kind: str):
        top = len(self.model.config.id2label)
        if "json" in kind:
            asked = json.loads(body)
            body, top = base64.b64decode(asked["inputs"]), asked["parameters"].get("top_k", 5)
        scores, places = classify(self.model, body).topk(top)
        return [
            {"label": self.model.config.id2label[int(p)], "score": float(s)}
            for s, p in zip(scores, places, strict=True)
        ]
