"""Servers that `benchmarks/serving.py` compares: each draws samples of one pipeline, and answers a PNG file.

    python benchmarks/serving_peers.py plain outputs/quickstart 8001 16

`plain` is what the documentation of FastAPI shows: a handler that calls the pipeline once for each request, one at a
time, as two calls would share its scheduler. `litserve` is LitServe with its own batches. Requests are those of `hfgen
serve`: `{"seed": 7, "class_labels": 3, "num_inference_steps": 10}`.
"""

import io
import sys
import threading
from typing import Any

try:
    from litserve import LitAPI
except ImportError:  # only the side `litserve` needs it; its class must be at the top, as it is pickled
    LitAPI = object

WAIT = 0.005
"""Seconds that a request waits for others to share its batch, as on an idle `hfgen serve`."""


def loaded(folder: str) -> Any:
    """Return a pipeline without progress bars."""
    import hfgen

    pipeline = hfgen.HFGenPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def png(image: Any) -> bytes:
    """Return an image as the bytes of a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def draw(pipeline: Any, requests: list[dict[str, Any]]) -> list[Any]:
    """Return the image of each request, all drawn in one call with the steps of the first."""
    from hfgen.utils.seeds import sample_generators

    generators = [one for request in requests for one in sample_generators(request["seed"], range(1))]
    labels = [request["class_labels"] for request in requests] if "class_labels" in requests[0] else None
    call: dict[str, Any] = {} if labels is None else {"class_labels": labels}
    steps = requests[0]["num_inference_steps"]
    return pipeline(len(requests), generator=generators, num_inference_steps=steps, **call).images


def plain(folder: str, port: int, max_batch: int) -> None:
    """Serve with a plain handler. There is no batch."""
    import uvicorn
    from fastapi import Body, FastAPI
    from fastapi.responses import Response

    app, pipeline, lock = FastAPI(), loaded(folder), threading.Lock()

    @app.post("/generate")
    def generate(body: dict[str, Any] = Body()) -> Response:  # noqa: B008 - as FastAPI reads a body
        with lock:
            (image,) = draw(pipeline, [body])
        return Response(png(image), media_type="image/png")

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="error")


class BatchedAPI(LitAPI):
    """Batches of requests for the pipeline."""

    folder = ""

    def setup(self, device: str) -> None:
        """Load the pipeline in the process that computes."""
        self.pipeline = loaded(self.folder)

    def decode_request(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return a request as it came."""
        return request

    def batch(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return a batch: the list of requests."""
        return inputs

    def predict(self, x: list[dict[str, Any]]) -> list[Any]:
        """Return the images of a batch."""
        return draw(self.pipeline, x)

    def unbatch(self, output: list[Any]) -> list[Any]:
        """Return the images one by one."""
        return output

    def encode_response(self, output: Any) -> Any:
        """Return the PNG file of an image."""
        from starlette.responses import Response

        return Response(png(output), media_type="image/png")


def litserve(folder: str, port: int, max_batch: int) -> None:
    """Serve with LitServe."""
    from litserve import LitServer

    api = BatchedAPI(max_batch_size=max_batch, batch_timeout=WAIT, api_path="/generate")
    api.folder = folder
    server = LitServer(api, accelerator="cpu", workers_per_device=1, timeout=600)
    server.run(host="127.0.0.1", port=port, generate_client_file=False, log_level="error")


if __name__ == "__main__":
    {"plain": plain, "litserve": litserve}[sys.argv[1]](sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
