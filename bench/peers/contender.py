"""A peer made ready for one cell: its best setting, its steps checked, captured, and timed when asked.

How a peer computes is its own file's business, and when each is timed that of whoever drives the worker.
"""

import statistics
import time
from dataclasses import dataclass, field

import torch

from layer import relative_error
from peer import Batch, Layer, Peer, Setting

# Of bfloat16 arithmetic with bfloat16 intermediates; a wrong expert or a missing row is off by far more.
ERROR_BOUND = 1e-2
# Replays by which settings are compared, after one to warm up.
TRIAL_REPLAYS = 5
# Before every burst: the queue fills, clocks and caches are this contender's own. An eager step is its own host's pace.
WARM_UP_REPLAYS = 3
# A run without a pause hands over about so much work before it waits.
BURST_SECONDS = 0.1


class WrongOutput(Exception):
    pass


@dataclass
class Contender:
    name: str
    mode: str  # "graph" or "eager"
    setting: Setting
    error: float
    runs: list  # one callable for each batch
    # What keeps buffers alive for the graphs.
    held: list = field(default_factory=list)

    def time(self, replays: int) -> list[float]:
        """Microseconds of each replay, batches in turn, between events of its own."""
        runs = self.runs
        for i in range(WARM_UP_REPLAYS if self.mode == "graph" else 1):
            runs[i % len(runs)]()
        marks = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(replays)]
        for i, (begin, end) in enumerate(marks):
            run = runs[i % len(runs)]
            begin.record()
            run()
            end.record()
        torch.cuda.synchronize()
        return [begin.elapsed_time(end) * 1000 for begin, end in marks]

    def run_for(self, seconds: float) -> tuple[int, float]:
        """(steps, seconds) of steps without a pause, for whoever reads the energy counter meanwhile."""
        each = statistics.median(self.time(TRIAL_REPLAYS)) / 1e6
        burst = max(1, round(BURST_SECONDS / each))
        steps, began = 0, time.perf_counter()
        while time.perf_counter() - began < seconds:
            for _ in range(burst):
                self.runs[steps % len(self.runs)]()
                steps += 1
            torch.cuda.synchronize()
        return steps, time.perf_counter() - began


def capture(step) -> tuple:
    """(graph, output). The step has run before, so nothing is compiled or created in the capture."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = step()
    return graph, output


def make_one(peer: Peer, layer: Layer, batch: Batch, expected: torch.Tensor, setting: Setting, mode: str) -> Contender:
    step = peer.prepare(layer, batch, setting)
    output = step()
    torch.cuda.synchronize()
    graph = None
    run = step
    if mode == "graph":
        graph, output = capture(step)
        run = graph.replay
    output.fill_(float("nan"))
    error = relative_error(run() if graph is None else (run(), output)[1], expected)
    if not error < ERROR_BOUND:
        raise WrongOutput(f"the output is off by {error:.3g} from float64")
    return Contender(peer.name, mode, setting, error, [run], [graph, step, output])


def make_contender(peer: Peer, layer: Layer, batches: list[Batch], expected: list[torch.Tensor], mode: str) -> Contender | None:
    """The peer with the setting that is fastest on the first batch, ready for all of them; None if it does not do this cell."""
    settings = peer.settings(layer, batches[0].tokens)
    best, best_time, failure = None, float("inf"), None
    for setting in settings:
        try:
            tried = make_one(peer, layer, batches[0], expected[0], setting, mode)
        except (WrongOutput, RuntimeError) as error:
            # Another setting may do: too much shared memory, or too much device memory.
            failure = error
            continue
        if len(settings) == 1:
            best = tried
            break
        took = statistics.median(tried.time(TRIAL_REPLAYS))
        if took < best_time:
            best, best_time = tried, took
        del tried
    if best is None:
        if failure is not None:
            raise failure
        return None
    for batch, wanted in zip(batches[1:], expected[1:]):
        other = make_one(peer, layer, batch, wanted, best.setting, mode)
        best.error = max(best.error, other.error)
        best.runs += other.runs
        best.held += other.held
    return best
