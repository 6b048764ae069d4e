"""A peer made ready for one cell: its best setting, its steps checked, captured, and timed when asked.

How a peer computes is its own file's business, and when each is timed that of whoever drives the worker.
"""

import math
import statistics
import time
from dataclasses import dataclass, field

import torch

from layer import relative_errors
from peer import Batch, Layer, Peer, Setting, Step

# Of a whole output, whose bfloat16 arithmetic with bfloat16 intermediates is off by 4e-3 or so.
ERROR_BOUND = 1e-2
# Of a single token: one that lost an expert of average weight is off by a third with 8 experts a token, by more with fewer.
ROW_ERROR_BOUND = 5e-2
# Replays of every batch by which settings are compared, after one round to warm up.
TRIAL_ROUNDS = 5
# Before every burst: the queue fills, clocks and caches are this contender's own. An eager step is its host's pace, and a host that has
# just waited takes longer for its first steps.
WARM_UP_REPLAYS, WARM_UP_STEPS = 3, 10
# Python takes 10 to 20 us to hand over a replay and its two events (H100's host; up to twice that in a process with much else in it),
# as long as a step of the smallest layer takes. A burst of replays therefore begins behind a kernel that holds the GPU for so long for
# each of them; if not all are queued by then it is done again with twice as long, up to the most.
HOST_US = 40
MOST_HOST_US = 64 * HOST_US
# torch.cuda._sleep counts cycles.
CYCLES_A_US = 2000
# A run without a pause hands over about so much work before it waits. Between two graphs a stream may be idle for microseconds, which
# no time between a replay's own events contains: steps that take less than GRAPH_US are therefore put into graphs that take as long or
# longer, all batches in turn. bench/compare/pace.mjs has Nexus do the same.
BURST_SECONDS = 0.1
GRAPH_US = 2000


class WrongOutput(Exception):
    pass


@dataclass
class Contender:
    name: str
    mode: str  # "graph" or "eager"
    setting: Setting = field(default_factory=dict)
    error: float = 0.0
    row_error: float = 0.0
    # Settings that were tried and failed, with the reason.
    rejected: list[dict] = field(default_factory=list)
    # For each batch a callable that runs its step: a replay of its graph, or the step itself, which `steps` has in either case.
    runs: list = field(default_factory=list)
    steps: list = field(default_factory=list)
    # What keeps buffers alive for the graphs.
    held: list = field(default_factory=list)
    # How a run without a pause goes on: found by the first.
    pace: "Pace | None" = None

    def time(self, replays: int) -> list[float]:
        """Microseconds of each replay, batches in turn from the first on, between events of its own."""
        runs = self.runs
        for i in range(WARM_UP_REPLAYS if self.mode == "graph" else WARM_UP_STEPS):
            runs[i % len(runs)]()
        marks = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(replays)]
        hold = HOST_US
        while not self.burst_of(marks, hold):
            hold *= 2
            if hold > MOST_HOST_US:
                raise RuntimeError(f"{replays} replays of {self.name} were not queued within {hold // 2} us each")
        return [begin.elapsed_time(end) * 1000 for begin, end in marks]

    def burst_of(self, marks: list, hold: int) -> bool:
        """A replay between each two marks, all of them over at the end. Whether the GPU found them all queued: an eager step need not be."""
        if self.mode == "graph":
            torch.cuda._sleep(hold * CYCLES_A_US * len(marks))
        for i, (begin, end) in enumerate(marks):
            begin.record()
            self.runs[i % len(self.runs)]()
            end.record()
        queued = self.mode != "graph" or not marks[0][0].query()
        torch.cuda.synchronize()
        return queued

    def trial(self) -> float:
        """Microseconds of a step, over all batches: no better than it must be to compare settings."""
        count = len(self.runs)
        self.time(count)
        samples = self.time(TRIAL_ROUNDS * count)
        return statistics.mean(statistics.median(samples[batch::count]) for batch in range(count))

    def run_for(self, seconds: float) -> tuple[int, float]:
        """(steps, seconds) of steps without a pause, for whoever reads the energy counter meanwhile."""
        if self.pace is None:
            self.pace = self.pace_of(self.trial())
        pace = self.pace
        launched, began = 0, time.perf_counter()
        while time.perf_counter() - began < seconds:
            for _ in range(pace.burst):
                pace.runs[launched % len(pace.runs)]()
                launched += 1
            torch.cuda.synchronize()
        return launched * pace.steps, time.perf_counter() - began

    def pace_of(self, us: float) -> "Pace":
        if self.mode != "graph" or us >= GRAPH_US:
            return Pace(self.runs, 1, max(1, round(BURST_SECONDS * 1e6 / us)))
        rounds = math.ceil(GRAPH_US / (us * len(self.steps)))

        def all_in_turn() -> None:
            for _ in range(rounds):
                for step in self.steps:
                    step()

        graph, _ = capture(all_in_turn)
        steps = rounds * len(self.steps)
        return Pace([graph.replay], steps, max(1, round(BURST_SECONDS * 1e6 / (us * steps))))


@dataclass
class Pace:
    """Of a run without a pause: what is launched in turn, how many steps each launch holds, and how many launches are handed over at once."""

    runs: list
    steps: int
    burst: int


def capture(step: Step) -> tuple:
    """(graph, output). The step has run before, so nothing is compiled or created in the capture."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = step()
    return graph, output


def add_batch(contender: Contender, peer: Peer, layer: Layer, batch: Batch, expected: torch.Tensor) -> None:
    """Gives the contender a run for one more batch, whose output over poison has been found right."""
    step = peer.prepare(layer, batch, contender.setting)
    output = step()
    torch.cuda.synchronize()
    run = step
    if contender.mode == "graph":
        graph, output = capture(step)
        run = graph.replay
        contender.held.append(graph)
    output.fill_(float("nan"))
    result = run()
    error, row_error = relative_errors(output if contender.mode == "graph" else result, expected)
    if not (error < ERROR_BOUND and row_error < ROW_ERROR_BOUND):
        raise WrongOutput(f"the output is off by {error:.3g} from float64, a token's by {row_error:.3g}")
    contender.error = max(contender.error, error)
    contender.row_error = max(contender.row_error, row_error)
    contender.runs.append(run)
    contender.steps.append(step)
    contender.held.append(output)


def contender_of(peer: Peer, layer: Layer, batches: list[Batch], expected: list[torch.Tensor], mode: str, setting: Setting) -> Contender:
    """The peer with this setting, its outputs checked. Throws whatever keeps it from running, and WrongOutput."""
    contender = Contender(peer.name, mode, setting)
    for batch, wanted in zip(batches, expected, strict=True):
        add_batch(contender, peer, layer, batch, wanted)
    return contender


def make_contender(peer: Peer, layer: Layer, batches: list[Batch], expected: list[torch.Tensor], mode: str) -> Contender | None:
    """The peer with the setting that is fastest over all batches; None if it does not do this cell."""
    settings = peer.settings(layer, batches[0].tokens)
    best, best_time, rejected = None, float("inf"), []
    for setting in settings:
        try:
            tried = contender_of(peer, layer, batches, expected, mode, setting)
            took = tried.trial() if len(settings) > 1 else 0.0
        except Exception as error:
            # Another setting may do: this one may want too much shared memory, or device memory.
            rejected.append({"setting": setting, "reason": str(error).split("\n")[0]})
            continue
        if took < best_time:
            best, best_time = tried, took
    if best is None and rejected:
        raise WrongOutput(rejected[-1]["reason"])
    if best is not None:
        best.rejected = rejected
    return best
