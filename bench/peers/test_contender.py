"""Checks how bursts of replays are held back until all are queued and how steps follow each other without a pause, on a made-up GPU: wants neither PyTorch nor a GPU.

    python test_contender.py

The made-up host takes so many microseconds to hand over a replay, and the made-up GPU begins with the first mark when
it is no longer held.
"""

import sys
import unittest
from types import ModuleType
from unittest.mock import MagicMock, patch

# contender.py takes no more of these than names, but for torch.cuda, which every test makes anew.
for name in ("torch", "layer", "peer"):
    sys.modules[name] = MagicMock(spec=ModuleType(name), __name__=name)
    for attribute in ("Tensor", "cuda", "relative_errors", "Batch", "Layer", "Peer", "Setting", "Step"):
        setattr(sys.modules[name], attribute, MagicMock())

import contender  # noqa: E402
from contender import CYCLES_A_US, GRAPH_US, HOST_US, MOST_HOST_US, WARM_UP_REPLAYS, WARM_UP_STEPS, Contender  # noqa: E402

STEP_US = 7.5


class MadeUpGpu:
    """What contender.py asks of torch.cuda."""

    def __init__(self, host_us: float):
        self.host_us = host_us
        self.now, self.held_until = 0.0, 0.0
        # Microseconds for which the GPU was held, and batches that were replayed, each in order.
        self.holds, self.replayed = [], []

    def _sleep(self, cycles: int) -> None:
        self.holds.append(cycles / CYCLES_A_US)
        self.held_until = self.now + cycles / CYCLES_A_US

    def synchronize(self) -> None:
        self.now = max(self.now, self.held_until)

    def Event(self, enable_timing: bool):
        event = MagicMock()
        event.query = lambda: self.now >= self.held_until
        event.elapsed_time = lambda end: STEP_US / 1000
        return event

    def runs(self, count: int) -> list:
        def run(batch: int):
            self.replayed.append(batch)
            self.now += self.host_us

        return [lambda batch=batch: run(batch) for batch in range(count)]


def made_ready(host_us: float, mode: str = "graph", batches: int = 2) -> tuple[MadeUpGpu, Contender]:
    gpu = MadeUpGpu(host_us)
    contender.torch.cuda = gpu
    return gpu, Contender("a peer", mode, runs=gpu.runs(batches))


class Bursts(unittest.TestCase):
    def test_a_burst_waits_until_all_of_it_is_queued(self):
        gpu, peer = made_ready(host_us=HOST_US / 2)
        self.assertEqual(peer.time(4), [STEP_US] * 4)
        self.assertEqual(gpu.holds, [4 * HOST_US])
        self.assertEqual(gpu.replayed[WARM_UP_REPLAYS:], [0, 1, 0, 1], "batches in turn, from the first on")

    def test_a_burst_that_was_not_queued_in_time_is_done_again_with_twice_as_long(self):
        gpu, peer = made_ready(host_us=3 * HOST_US)
        self.assertEqual(peer.time(4), [STEP_US] * 4)
        self.assertEqual(gpu.holds, [4 * HOST_US, 8 * HOST_US, 16 * HOST_US])
        self.assertEqual(gpu.replayed[WARM_UP_REPLAYS:], [0, 1, 0, 1] * 3, "each from the first batch on")

    def test_one_that_is_never_queued_in_time_is_given_up_with_the_reason(self):
        gpu, peer = made_ready(host_us=2 * MOST_HOST_US)
        with self.assertRaisesRegex(RuntimeError, f"^4 replays of a peer were not queued within {MOST_HOST_US} us each$"):
            peer.time(4)
        self.assertEqual(gpu.holds, [4 * HOST_US * 2**i for i in range(7)])
        self.assertEqual(gpu.holds[-1], 4 * MOST_HOST_US)

    def test_the_most_is_still_tried(self):
        gpu, peer = made_ready(host_us=0.75 * MOST_HOST_US)
        self.assertEqual(len(peer.time(1)), 1)
        self.assertEqual(gpu.holds[-1], MOST_HOST_US)

    def test_an_eager_step_is_its_own_hosts_pace_and_never_held(self):
        gpu, peer = made_ready(host_us=2 * MOST_HOST_US, mode="eager")
        self.assertEqual(peer.time(4), [STEP_US] * 4)
        self.assertEqual(gpu.holds, [])
        self.assertGreaterEqual(WARM_UP_STEPS, 10)
        self.assertEqual(gpu.replayed, [0, 1] * (WARM_UP_STEPS // 2 + 2), "steps to warm up, and one burst")


class Paces(unittest.TestCase):
    """Of runs without a pause."""

    def pace(self, us: float, mode: str = "graph", batches: int = 2):
        gpu, peer = made_ready(host_us=1, mode=mode, batches=batches)
        peer.steps = gpu.runs(batches)
        captured = []

        def capture(step):
            gpu.replayed.clear()
            step()
            captured.append(list(gpu.replayed))
            return MagicMock(), None

        with patch.object(contender, "capture", capture):
            return peer, peer.pace_of(us), captured

    def test_short_steps_are_put_into_graphs_of_all_batches(self):
        for us, batches in [(7.5, 16), (31.0, 16), (900.0, 4), (GRAPH_US - 1, 1)]:
            _, pace, [graph] = self.pace(us, batches=batches)
            self.assertEqual(graph, list(range(batches)) * (len(graph) // batches), "batches in turn, equally often")
            self.assertEqual(pace.steps, len(graph))
            self.assertGreaterEqual(pace.steps * us, GRAPH_US)
            self.assertLess((pace.steps - batches) * us, GRAPH_US, "and no more of them than that takes")
            self.assertEqual(len(pace.runs), 1)
            self.assertGreaterEqual(pace.burst, 1)

    def test_long_and_eager_ones_are_launched_one_by_one(self):
        for us, mode in [(GRAPH_US, "graph"), (20.0, "eager")]:
            peer, pace, captured = self.pace(us, mode)
            self.assertEqual((pace.runs, pace.steps, captured), (peer.runs, 1, []))

    def test_a_run_counts_every_step_of_every_launch(self):
        gpu, peer = made_ready(host_us=1)
        launched = []
        peer.pace = contender.Pace([lambda: launched.append(0), lambda: launched.append(1)], steps=32, burst=3)
        steps, seconds = peer.run_for(0.001)
        self.assertEqual(steps, 32 * len(launched))
        self.assertEqual(launched[:4], [0, 1, 0, 1], "in turn, also from burst to burst")
        self.assertGreaterEqual(seconds, 0.001)


if __name__ == "__main__":
    unittest.main()
