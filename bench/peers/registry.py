"""The peers that the worker times."""

from block_aligned import BlockAligned
from dense import Dense
from grouped_mm import GroupedMm
from huggingface import Transformers
from loop import Loop, SortedLoop
from openai_kernels import TritonKernels
from peer import Peer
from scatter import Scatter

PEERS: list[Peer] = [
    BlockAligned(),
    Scatter(),
    TritonKernels(),
    GroupedMm(),
    Transformers("grouped_mm"),
    Transformers("batched_mm"),
    Dense(),
    SortedLoop(),
    Loop(),
]
