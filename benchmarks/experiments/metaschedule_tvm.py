"""TVM's MetaSchedule on one convolution: a program for a Python that has TVM, without our packages.

    PYTHON metaschedule_tvm.py N C H W OC KERNEL STRIDE PADDING SECONDS CORES

The convolution is NHWC with bias and ReLU, float32, on one thread. TVM may lay weights out as it
likes, which is not timed. Builder and runner work in this process: those that come with the wheel
start a Python with TVM for each of them, which takes longer than a search. The last line of the
output has the trials, the seconds until the search ended, and the samples of the fastest kernel in
seconds per call.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from typing import Any

_NUMBER, _REPEATS = 3, 3  # calls of a sample and samples of a trial
_TOO_MANY = 100_000  # trials: the time ends first


class OutOfTimeError(Exception):
    """The seconds of the search are over."""


def main(words: list[str]) -> int:
    """Search, then time the fastest."""
    *sizes, seconds, cores = words
    n, c, h, w, oc, kernel, stride, padding = map(int, sizes)

    import tvm
    from tvm import te, topi

    data = te.placeholder((n, h, w, c), name="data")
    weight = te.placeholder((kernel, kernel, c, oc), name="weight")
    bias = te.placeholder((oc,), name="bias")
    summed = topi.nn.conv2d_nhwc(data, weight, stride, padding, 1, out_dtype="float32")
    result = topi.nn.relu(topi.add(summed, bias))
    function = te.create_prim_func([data, weight, bias, result])
    function = function.with_attr("global_symbol", "main")
    mcpu = tvm.target.codegen.llvm_get_system_cpu()
    target = tvm.target.Target({"kind": "llvm", "mcpu": mcpu, "num-cores": 1})
    search = _Search(float(seconds))
    search.run(function, target, int(cores))
    found = search.again(20)
    print(
        json.dumps({"trials": search.trials, "seconds": search.elapsed, "samples": found}),
        flush=True,
    )
    return 0


class _Search:
    def __init__(self, seconds: float) -> None:
        self._begin, self._seconds = time.monotonic(), seconds
        self._built: dict[str, Any] = {}
        self._best: tuple[float, Any, Any] | None = None
        self.trials = 0
        self.elapsed = 0.0

    def run(self, function: Any, target: Any, cores: int) -> None:
        """Search until the time is over."""
        import tvm
        from tvm.ir.utils import derived_object
        from tvm.s_tir import meta_schedule as ms

        search = self

        @derived_object
        class Builder(ms.builder.PyBuilder):
            def build(self, build_inputs: Any) -> list[Any]:
                return [search._build(each, ms, tvm) for each in build_inputs]

        @derived_object
        class Runner(ms.runner.PyRunner):
            def run(self, runner_inputs: Any) -> list[Any]:
                return [search._time(each, ms) for each in runner_inputs]

        try:
            ms.tir_integration.tune_tir(
                function,
                target,
                tempfile.mkdtemp(),
                _TOO_MANY,
                num_trials_per_iter=16,
                builder=Builder(),
                runner=Runner(),
                num_tuning_cores=cores,
                seed=1,
            )
        except Exception as error:  # of whatever class it has become on its way through C++
            if self._left > 0:
                raise
            print("stopped:", type(error).__name__, file=sys.stderr)
        self.elapsed = time.monotonic() - self._begin

    def again(self, repeats: int) -> list[float]:
        """Samples of the fastest kernel."""
        if self._best is None:
            return []
        return self._seconds_of(*self._best[1:], repeats)

    @property
    def _left(self) -> float:
        return self._seconds - (time.monotonic() - self._begin)

    def _build(self, given: Any, ms: Any, tvm: Any) -> Any:
        if self._left <= 0:
            raise OutOfTimeError
        from tvm.s_tir.transform import RemoveWeightLayoutRewriteBlock

        name = os.path.join(tempfile.mkdtemp(), "kernel")  # TVM removes the folder
        try:
            module = RemoveWeightLayoutRewriteBlock(skip_tensor_rewrite=True)(given.mod)
            self._built[name] = tvm.compile(module, target=given.target).jit()
        except Exception as error:  # a schedule that LLVM refuses is an outcome
            return ms.builder.BuilderResult(None, str(error)[-200:])
        return ms.builder.BuilderResult(name, None)

    def _time(self, given: Any, ms: Any) -> Any:
        if self._left <= 0:
            raise OutOfTimeError
        library = self._built.pop(given.artifact_path)
        samples = self._seconds_of(library, given.args_info, _REPEATS)
        self.trials += 1
        if self._best is None or min(samples) < self._best[0]:
            self._best = min(samples), library, given.args_info
            print(f"{1e3 * min(samples):.3f} ms, trial {self.trials}", file=sys.stderr, flush=True)
        done = ms.runner.RunnerResult(samples, None)
        return ms.runner.RunnerFuture(lambda: True, lambda: done)

    def _seconds_of(self, library: Any, operands: Any, repeats: int) -> list[float]:
        """Samples of a kernel with random operands of the shapes that it wants."""
        import numpy as np
        import tvm

        draw = np.random.default_rng(0)
        shapes = [tuple(map(int, each.shape)) for each in operands]
        arrays = [tvm.runtime.tensor(draw.standard_normal(x, np.float32)) for x in shapes]
        evaluator = library.time_evaluator("main", tvm.cpu(), number=_NUMBER, repeat=repeats)
        return [float(x) for x in evaluator(*arrays).results]


if __name__ == "__main__":
    os.environ.setdefault("TVM_NUM_THREADS", "1")
    sys.exit(main(sys.argv[1:]))
