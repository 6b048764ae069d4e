"""The peers' process: takes one request a line (JSON, standard input), gives one answer a line (JSON, standard output).

It makes the layer, draws the inputs, computes what the output should be, keeps the peers ready and times whichever it
is asked for. Who is asked when is decided by bench/compare, which has Nexus take its turns in between.

    hello                          versions, device, what cannot run and why
    limits                         what a copy and a large matrix product reach here
    layer  {shape, seed, tokens}   makes the layer; compiles what its peers need for so many tokens
    cell   {tokens, routing, batches, seed, folder, peers}
                                   draws batches into files of the folder; makes contenders; tells which there are
    check  {files}                 whether outputs that somebody else wrote are right, and by how much they are off
    time   {contender, replays}    microseconds of each
    run    {contender, seconds}    steps without a pause
"""

import gc
import json
import math
import os
import sys
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
import transformers
import triton

import cublas
from contender import ERROR_BOUND, ROW_ERROR_BOUND, Contender, capture, make_contender
from layer import draw_batch, make_layer, read_output, reference, relative_errors, route64, write_batch
from peer import Shape
from registry import PEERS

# A copy that no cache helps, and a product large enough for the tensor cores' best.
COPY_BYTES, MATRIX = 4 << 30, 8192
LIMIT_REPEATS = 10


class Worker:
    def __init__(self) -> None:
        self._layer = None
        self.batches, self.expected = [], []
        self.contenders: dict[str, Contender] = {}

    def hello(self) -> dict:
        properties = torch.cuda.get_device_properties(0)
        unavailable = [{"name": p.name, "reason": reason} for p in PEERS if (reason := p.available()) is not None]
        return {
            "versions": {
                "python": sys.version.split()[0],
                "torch": torch.__version__,
                "triton": triton.__version__,
                "transformers": transformers.__version__,
                "cuda": torch.version.cuda,
            },
            "device": {"name": properties.name, "uuid": f"GPU-{properties.uuid}", "memoryBytes": properties.total_memory},
            "peers": [peer.name for peer in PEERS],
            "unavailable": unavailable,
        }

    def limits(self) -> dict:
        source = torch.empty(COPY_BYTES // 4, device="cuda").normal_()
        target = torch.empty_like(source)
        copy = median_us(lambda: target.copy_(source))
        del source, target
        a, b = (torch.randn(MATRIX, MATRIX, device="cuda", dtype=torch.bfloat16) for _ in range(2))
        product = median_us(lambda: torch.matmul(a, b))
        return {"copyTBs": 2 * COPY_BYTES / copy / 1e6, "matrixTFlops": 2 * MATRIX**3 / product / 1e6}

    def layer(self, shape: dict, seed: int, tokens: list[int]) -> dict:
        self.drop_cell()
        self._layer = None
        torch.cuda.empty_cache()
        self._layer = make_layer(Shape(**shape), seed)
        jobs = [job for peer in PEERS if hasattr(peer, "compile_jobs") for job in peer.compile_jobs(self._layer.shape, tokens)]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(lambda job: job(), jobs))
        torch.cuda.synchronize()
        return {"compiled": len(jobs)}

    def drop_cell(self) -> None:
        self.batches, self.expected, self.contenders = [], [], {}
        gc.collect()
        torch.cuda.empty_cache()

    def cell(self, tokens: int, routing: str, batches: int, seed: int, folder: str, peers: list[str] | None = None) -> dict:
        self.drop_cell()
        generator = torch.Generator("cuda").manual_seed(seed)
        shape = self._layer.shape
        self.batches = [draw_batch(shape, tokens, routing, generator) for _ in range(batches)]
        self.expected = [reference(self._layer, batch) for batch in self.batches]
        for i, batch in enumerate(self.batches):
            write_batch(batch, Path(folder), str(i))
        made = []
        for peer in PEERS:
            if peer.available() is not None or (peers is not None and peer.name not in peers):
                continue
            for mode in peer_modes(peer):
                made += self.ready(peer, mode)
        counts = torch.stack([route64(shape, b.logits)[1].flatten().bincount(minlength=shape.experts) for b in self.batches])
        return {
            "contenders": made,
            "expertsUsed": float((counts > 0).sum(1).double().mean()),
            "imbalance": float((counts.amax(1) / counts.double().mean(1)).mean()),
        }

    def ready(self, peer, mode: str) -> list[dict]:
        try:
            contender = make_contender(peer, self._layer, self.batches, self.expected, mode)
        except Exception as error:
            traceback.print_exc()
            torch.cuda.empty_cache()
            return [{"name": peer.name, "mode": mode, "failed": str(error).split("\n")[0]}]
        if contender is None:
            return []
        identity = f"{peer.name} {mode}"
        self.contenders[identity] = contender
        made = {"id": identity, "name": peer.name, "mode": mode, "setting": contender.setting}
        errors = {"relativeError": contender.error, "rowError": contender.row_error}
        return [{**made, **errors, **({"rejected": contender.rejected} if contender.rejected else {})}]

    def cublas(self, active: int) -> dict:
        """Both products as batched matrix products of even rows: not a peer, the practical limit."""
        step = cublas.limit(self._layer, self.batches[0].tokens, active)
        step()
        torch.cuda.synchronize()
        graph, output = capture(step)
        self.contenders["cublas"] = Contender("cublas", "graph", runs=[graph.replay], held=[graph, step, output])
        return {}

    def check(self, files: list[str]) -> dict:
        triples = zip(files, self.batches, self.expected, strict=True)
        errors = [relative_errors(read_output(Path(file), batch), expected) for file, batch, expected in triples]
        error, row_error = (max(each) for each in zip(*errors))
        right = error < ERROR_BOUND and row_error < ROW_ERROR_BOUND
        # JSON has no infinity.
        finite = [each if math.isfinite(each) else None for each in (error, row_error)]
        return {"right": right, "relativeError": finite[0], "rowError": finite[1]}

    def time(self, contender: str, replays: int) -> dict:
        return {"samples": [round(us, 3) for us in self.contenders[contender].time(replays)]}

    def run(self, contender: str, seconds: float) -> dict:
        steps, took = self.contenders[contender].run_for(seconds)
        return {"steps": steps, "seconds": took}


def peer_modes(peer) -> tuple[str, ...]:
    if not peer.capturable:
        return ("eager",)
    return ("graph", "eager") if getattr(peer, "also_eager", False) else ("graph",)


def median_us(step) -> float:
    contender = Contender("", "eager", runs=[step])
    samples = sorted(contender.time(LIMIT_REPEATS))
    return samples[len(samples) // 2]


def main() -> None:
    # Libraries print what they like, elsewhere: standard output is for answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    worker = Worker()
    for line in sys.stdin:
        request = json.loads(line)
        name = request.pop("do")
        try:
            answer = getattr(worker, name)(**request)
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
