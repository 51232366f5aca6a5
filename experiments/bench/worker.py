"""One layer in a process of its own: a job in JSON on stdin, what is found out on stdout, one JSON object a line.

{"begin": [product, contestant], "stage": ...}       so that the parent knows whom to blame for a crash or a timeout
{"of": [product, contestant], "facts": {...}}        seconds (a list), compile_seconds, temp_bytes, kept_bytes
{"row": {...}}                                       errors, difference, others (cores that others used)
{"done": true}
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any, TextIO

import jax
import numpy as np

from experiments.bench import contestants, extras, layers, measure, torch_forms, truth
from experiments.bench.contestants import Form
from experiments.bench.layers import Layer


def main() -> None:
    """Reads the job, does it, and tells."""
    events = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints is no event
    job = json.load(sys.stdin)
    if job["dtype"] in ("float64", "complex128"):
        jax.config.update("jax_enable_x64", True)
    Worker(job, events).work()
    _tell(events, done=True)


def _tell(events: TextIO, **event: Any) -> None:
    print(json.dumps(event), file=events)


class Worker:
    """What one process knows of its layer."""

    def __init__(self, job: dict[str, Any], events: TextIO) -> None:
        self.layer: Layer = layers.from_json(job["layer"])
        self.job, self.events = job, events
        self.skip = {tuple(pair) for pair in job["skip"]}
        self.is_program = self.layer.op == layers.PROGRAM
        self.operands = {} if self.is_program else contestants.draw(self.layer, job["dtype"])
        # The same arrays for all forms: where in memory a large one lies changes the time of a program by some percent.
        self.on_device = {name: jax.numpy.array(operand) for name, operand in self.operands.items()}
        self.forms: dict[str, Form] = {}
        self.others: dict[str, float] = {}  # cores that other processes used while a product was timed
        self.results: dict[str, dict[str, Any]] = {}  # by product and contestant, for the errors

    def work(self) -> None:
        # The first compilation of a process pays for starting LLVM and the threads: let no contestant pay.
        jax.jit(lambda x: jax.lax.fori_loop(0, 3, lambda _, x: x @ x, x))(np.ones((8, 8), np.float32))
        measure.age_allocator()
        for product in self.job["products"]:
            self.time_product(product)
        self.tell_errors()

    def time_product(self, product: str) -> None:
        calls, seconds = {}, {}
        for contestant in self.job["contestants"]:
            if (product, contestant) in self.skip:
                continue
            try:
                call = self.torch_call(product) if contestant == "torch" else self.jax_call(product, contestant)
                if call is not None:
                    self.begin(product, contestant, "first call")
                    seconds[contestant] = measure.warm(call)
                    calls[contestant] = call
            except Exception as error:  # whatever it is, it is this contestant's alone and belongs into the table
                # "|" ends a message that JAX goes on with for a page
                self.facts(product, contestant, error=f"{type(error).__name__}: {error}".splitlines()[0][:300])
        self.begin(product, "all", "timing", expected_seconds=3 * sum(seconds.values()) * max(5, self.job["repeats"]))
        begin, before = time.perf_counter(), measure.other_cpu_seconds()
        for contestant, times in measure.interleaved(calls, seconds, self.job["repeats"]).items():
            self.facts(product, contestant, seconds=times)
        after = measure.other_cpu_seconds()
        if before is not None and after is not None:
            self.others[product] = (after - before) / (time.perf_counter() - begin)
            _tell(self.events, row={"others": self.others})

    def jax_call(self, product: str, contestant: str) -> measure.Call | None:
        if self.layer.eager and product in ("once", "loop"):
            return None  # each eager call of lax.scan is compiled anew: that would be timed
        self.begin(product, contestant, "compile")
        form = self.forms.get(contestant) or self.make_form(contestant)
        if product not in form.products or (product == "kernel_grad" and len(form.operands) == 2):
            return None
        function, operands = form.products[product], form.operands
        if self.layer.eager:
            program = function
        else:
            program, facts = measure.compile_program(function, operands)
            self.facts(product, contestant, **facts)
        # The results of step say it all; where it is not asked for, those of each product are checked.
        if product == "step" or (product in contestants.RESULTS and "step" not in self.job["products"]):
            self.begin(product, contestant, "results")
            results = program(*operands)
            named = jax.tree.leaves(results) if self.is_program else form.named(product, results)
            self.results.setdefault(product, {})[contestant] = named
        return lambda: jax.block_until_ready(program(*operands))

    def make_form(self, contestant: str) -> Form:
        if self.is_program:
            self.forms[contestant] = extras.program_form(contestant, self.layer.name)
        else:
            self.forms[contestant] = form = contestants.form(contestant, self.layer, self.on_device)
            kept = measure.kept_bytes(form.function, form.operands[:-1])
            self.facts("step", contestant, kept_bytes=kept)
        return self.forms[contestant]

    def torch_call(self, product: str) -> measure.Call | None:
        """PyTorch in the faster of its two memory formats for this product, by a short trial."""
        if self.is_program:
            return None
        self.begin(product, "torch", "first call")
        trials = {}
        for memory_format in torch_forms.memory_formats(self.layer):
            call = torch_forms.call(self.layer, self.operands, memory_format, product)
            if call is None:
                return None
            seconds = measure.warm(call)
            if seconds < 1:
                seconds = min(measure.seconds_of(call, 1) for _ in range(5))
            trials[memory_format] = (seconds, call)
        best = min(trials, key=lambda memory_format: trials[memory_format][0])
        self.facts(product, "torch", memory_format=best)
        return trials[best][1]

    def tell_errors(self) -> None:
        if self.is_program:
            of_step = self.results.get("step", {})
            if {"jconv", "lax"} <= set(of_step):
                pairs = zip(of_step["jconv"], of_step["lax"])
                difference = max(float(np.abs(a - b).max() / (np.abs(b).max() or 1)) for a, b in pairs)
                _tell(self.events, row={"difference": difference})
            return
        self.begin("step", "all", "float64")
        wanted = truth.step(self.layer, self.operands) if self.results else {}
        if wanted:
            errors = {
                product: {name: truth.errors(results, wanted) for name, results in forms.items()}
                for product, forms in self.results.items()
            }
            _tell(self.events, row={"errors": errors})

    def begin(self, product: str, contestant: str, stage: str, expected_seconds: float = 0.0) -> None:
        _tell(self.events, begin=[product, contestant], stage=stage, expected_seconds=expected_seconds)

    def facts(self, product: str, contestant: str, **facts: Any) -> None:
        _tell(self.events, of=[product, contestant], facts=facts)


if __name__ == "__main__":
    main()
