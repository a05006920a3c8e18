"""A tuned network inside an application that answers several requests at once.

    python examples/embed.py squeezenet1.1 --plan squeezenet.plan --requests 40

With a plan, no database is read. Clones share code and weights, but each has its own memory for
activations. So there can be as many requests at once as there are clones.
"""

from __future__ import annotations

import argparse
import queue
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from fastrun import InputError, load


class Service:
    """Runs a network of one input and one output, for calls from any thread."""

    def __init__(self, model: str, plan: str | None, clones: int, threads: int) -> None:
        network = load(model, threads, plan=plan, policy="heuristic")
        ((self.input, self.shape),) = network.inputs.items()
        self._idle = queue.SimpleQueue()
        for _ in range(clones):
            self._idle.put(network.clone())

    def __call__(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Raises InputError if the image is not what the network takes."""
        network = self._idle.get()
        try:
            return next(iter(network.run({self.input: image}).values()))
        finally:
            self._idle.put(network)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--plan")
    parser.add_argument("--clones", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="threads of each clone")
    parser.add_argument("--requests", type=int, default=40)
    options = parser.parse_args()
    service = Service(options.model, options.plan, options.clones, options.threads)
    images = np.random.default_rng(0).random((options.requests, *service.shape), np.float32)
    start = time.perf_counter()
    with ThreadPoolExecutor(options.clones) as pool:
        answers = list(pool.map(service, images))
    print(f"{len(answers) / (time.perf_counter() - start):.1f} answers a second")
    try:
        service(images[0, ..., :-1])
    except InputError as error:
        print(f"refused: {error}")
