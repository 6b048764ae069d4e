"""A contender that runs in Python: a loop over the experts, in numpy over OpenBLAS or in PyTorch.

    python serve.py FOLDER numpy|torch

The protocol is in contenders.mjs, the layout of the files in layer.mjs.
"""

import json
import os
import sys
import time
from pathlib import Path

folder, library = Path(sys.argv[1]), sys.argv[2]
layer = json.loads((folder / "layer.json").read_text())
EXPERTS, TOP_K, HIDDEN, INNER = (layer[key] for key in ("experts", "topK", "hiddenSize", "intermediateSize"))
# Read by the libraries when they are loaded.
for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = str(layer["threads"])


def answer(line):
    print(json.dumps(line), flush=True)


try:
    import numpy as np

    if library == "torch":
        import torch
except ImportError as error:
    answer({"unavailable": str(error)})
    sys.exit()


def load_weights():
    """(gate_up [E, 2I, H], down [E, H, I])."""
    values = np.fromfile(folder / "weights.bin", dtype=np.float32)
    split = EXPERTS * 2 * INNER * HIDDEN
    return values[:split].reshape(EXPERTS, 2 * INNER, HIDDEN), values[split:].reshape(EXPERTS, HIDDEN, INNER)


def numpy_contender():
    gate_up, down = load_weights()
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]

    def step(hidden, logits):
        shares = np.exp(logits - logits.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        ids = np.argpartition(shares, -TOP_K, axis=-1)[:, -TOP_K:]
        weights = np.take_along_axis(shares, ids, -1)
        if layer["renormalize"]:
            weights /= weights.sum(-1, keepdims=True)
        output = np.zeros_like(hidden)
        order = np.argsort(ids, axis=None, kind="stable")
        ends = np.cumsum(np.bincount(ids.ravel(), minlength=EXPERTS))
        start = 0
        for expert, end in enumerate(ends):
            if end > start:
                slots = order[start:end]
                tokens = slots // TOP_K
                both = hidden[tokens] @ gate_up[expert].T
                gate, inner = both[:, :INNER], both[:, INNER:]
                inner *= gate
                np.negative(gate, out=gate)
                np.exp(gate, out=gate)
                gate += 1
                inner /= gate
                rows = inner @ down[expert].T
                rows *= weights.ravel()[slots, None]
                output[tokens] += rows
            start = end
        return output

    versions = {"numpy": np.__version__, "openblas": f"{blas['name']} {blas['version']}"}
    return versions, lambda array: array, step


def torch_contender():
    gate_up, down = (torch.from_numpy(each) for each in load_weights())
    torch.set_num_threads(layer["threads"])

    @torch.inference_mode()
    def step(hidden, logits):
        weights, ids = torch.softmax(logits, -1).topk(TOP_K, -1)
        if layer["renormalize"]:
            weights = weights / weights.sum(-1, keepdim=True)
        output = torch.zeros_like(hidden)
        flat = ids.flatten()
        order = torch.argsort(flat, stable=True)
        tokens, shares = order // TOP_K, weights.flatten()[order, None]
        start = 0
        for expert, count in enumerate(torch.bincount(flat, minlength=EXPERTS).tolist()):
            if count > 0:
                slots = slice(start, start + count)
                both = hidden[tokens[slots]] @ gate_up[expert].T
                inner = torch.nn.functional.silu(both[:, :INNER]) * both[:, INNER:]
                output.index_add_(0, tokens[slots], (inner @ down[expert].T) * shares[slots])
            start += count
        return output

    return {"torch": torch.__version__}, torch.from_numpy, step


def read_batch(file, tokens, convert):
    values = np.fromfile(file, dtype=np.float32)
    split = tokens * HIDDEN
    return convert(values[:split].reshape(tokens, HIDDEN)), convert(values[split:].reshape(tokens, EXPERTS))


def main():
    versions, convert, step = numpy_contender() if library == "numpy" else torch_contender()
    answer({"versions": {"python": sys.version.split()[0], **versions}})
    batches = []
    for line in sys.stdin:
        request = json.loads(line)
        if "load" in request:
            batches = [read_batch(file, request["tokens"], convert) for file in request["load"]]
            answer({})
        elif "output" in request:
            np.asarray(step(*batches[0])).tofile(request["output"])
            answer({})
        else:
            first = request["first"]
            step(*batches[first - 1])
            times = []
            for i in range(request["calls"]):
                began = time.perf_counter()
                step(*batches[(first + i) % len(batches)])
                times.append((time.perf_counter() - began) * 1e6)
            answer({"us": times})


main()
