"""Compiles every kernel ahead of time: cubins, PTX, and a manifest that says how to launch each.

    python build.py [--out DIR] [--jobs N] [--like MANIFEST]

Needs Triton 3.6.0 and neither a GPU nor PyTorch. What it writes (bundle/ here, which git ignores) has a file for every
kernel, for launch.py and the tests; kernels/pack.mjs makes of it what is committed and shipped, and `npm run kernels`
does both. The same sources give the same bytes again: line information, which holds paths, is left out,
nothing is taken from Triton's cache, and memory addresses, by which ptxas decides ties between registers, are not
randomized. On another machine, or once other packages are installed, a few such ties may come out otherwise; with --like, a kernel that is not what that packed
manifest has is compiled again under other addresses, until it is or there are no more to try.
"""

import os
import sys
import tempfile

# Of this build, by a name that is always as long.
SCRATCH = tempfile.mkdtemp(prefix="nexus-triton-", dir="/tmp")
# Read by Triton when it is imported.
os.environ["TRITON_DISABLE_LINE_INFO"] = "1"

import argparse  # noqa: E402
import contextlib  # noqa: E402
import ctypes  # noqa: E402
import hashlib  # noqa: E402
import json  # noqa: E402
import re  # noqa: E402
import shutil  # noqa: E402
import struct  # noqa: E402
from concurrent.futures import ProcessPoolExecutor  # noqa: E402
from pathlib import Path  # noqa: E402

import triton  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402
from triton.experimental.gluon._runtime import GluonASTSource  # noqa: E402

import l2  # noqa: E402
import variants  # noqa: E402
from experts import activation, combine, decode, grouped  # noqa: E402
from ptx_checks import check_barriers, check_waits  # noqa: E402
from routing import bucket, gate, route, tidy  # noqa: E402

HERE = Path(__file__).resolve().parent
BUNDLE = HERE / "bundle"
TRITON_VERSION = "3.6.0"
ABI_VERSION = 4
# An old driver can finish PTX of the ISA version it knows; 8.0 came with CUDA 12.0.
PTX_VERSION = 80

# Per multiprocessor: registers, bytes of shared memory, threads (CUDA C++ programming guide, technical specifications).
MULTIPROCESSOR = {
    80: (65536, 167936, 2048),
    90: (65536, 233472, 2048),
    100: (65536, 233472, 2048),
    120: (65536, 102400, 1536),
}
# Most dynamic shared memory a block can ask for.
SHARED_PER_BLOCK = {80: 166912, 90: 232448, 100: 232448, 120: 101376}
# Columns of tensor memory on sm_100, the accumulators' place there.
TENSOR_MEMORY_COLUMNS = 512
# personality(2): ask for the present value; give this and all processes that it starts the same addresses every time.
PERSONALITY_ASK = 0xFFFFFFFF
ADDR_NO_RANDOMIZE = 0x0040000
# How many characters the folder's name has by which ptxas is called: a build's, and what --like tries after it.
NAME_LENGTHS = range(9, 74, 8)
# Exit code of --like where addresses are randomized all the same.
NOT_EXACT = 3
# The least of all architectures from sm_80 on: what PTX can count on.
SHARED_PER_BLOCK_LEAST = min(SHARED_PER_BLOCK.values())
# Shared memory that every block takes for the system's own use.
SHARED_RESERVED = 1024


def call_ptxas_by_a_name(longer):
    """Has Triton call ptxas by a name that is as long wherever Triton lies, and keep what it compiles beside it.

    ptxas's memory holds that name, so its length moves the addresses by which it decides ties: five gates of sm_100a came out
    with other registers where the path was shorter, and four on another machine, until it was 8 to 24 characters longer. The
    cache is one of its own, so that what an earlier build, or another name, left does not decide this one.
    """
    folder = os.path.join(SCRATCH, "n" * longer)
    os.makedirs(folder, exist_ok=True)
    os.environ["TRITON_CACHE_DIR"] = folder
    for tool in ("ptxas", "ptxas-blackwell"):
        link = os.path.join(folder, tool)
        with contextlib.suppress(FileExistsError):  # another process of the pool may have made it
            os.symlink(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / tool, link)
        os.environ[f"TRITON_{tool.upper().replace('-', '_')}_PATH"] = link


def fix_addresses():
    """Whether it could be done: container runtimes may forbid it. ptxas decides ties between registers by addresses."""
    personality = ctypes.CDLL(None).personality
    personality.argtypes = [ctypes.c_ulong]
    return personality(personality(PERSONALITY_ASK) | ADDR_NO_RANDOMIZE) != -1


def registers_per_thread(cubin, entry):
    """Reads REGCOUNT out of the cubin's .nv.info (attribute 0x2f: symbol index, registers)."""
    offset = struct.unpack_from("<Q", cubin, 0x28)[0]
    entry_size, count = struct.unpack_from("<HH", cubin, 0x3A)
    sections = [struct.unpack_from("<IIQQQQIIQQ", cubin, offset + i * entry_size) for i in range(count)]
    names = sections[struct.unpack_from("<H", cubin, 0x3E)[0]]
    for section in sections:
        start = names[4] + section[0]
        name = cubin[start : cubin.index(b"\0", start)].decode()
        if name == ".nv.info":
            data = cubin[section[4] : section[4] + section[5]]
            at = 0
            while at < len(data):
                form, attribute, value = struct.unpack_from("<BBH", data, at)
                at += 4
                if form == 4:
                    if attribute == 0x2F:
                        return struct.unpack_from("<II", data, at)[1]
                    at += value
    raise ValueError(f"no register count in the cubin of {entry}")


def blocks_per_multiprocessor(architecture, registers, shared, warps, tensor_memory):
    """How many blocks fit on a multiprocessor at once: what a persistent grid is a multiple of."""
    all_registers, all_shared, all_threads = MULTIPROCESSOR[architecture]
    # Registers are given out to a warp in units of 256.
    per_warp = -(-registers * 32 // 256) * 256
    blocks = min(
        all_registers // (per_warp * warps), all_shared // (shared + SHARED_RESERVED), all_threads // (32 * warps)
    )
    if tensor_memory:
        blocks = min(blocks, TENSOR_MEMORY_COLUMNS // tensor_memory)
    return max(1, blocks)


def passed_arguments(variant, tensordesc_meta):
    """The kernel's parameters in ABI order: a descriptor is several, and two scratch pointers end every list."""
    passed = []
    metas = iter(tensordesc_meta or [])
    for name, kind in variant.arguments.items():
        divisible = 16 if name in variant.divisible else None
        if kind.startswith("tensordesc") and tensordesc_meta:
            dimensions = range(len(next(metas)["block_size"]))
            passed.append({"name": name, "type": "tensormap", "divisible_by": None})
            passed += [{"name": f"{name}_shape{d}", "type": "i32", "divisible_by": None} for d in dimensions]
            passed += [{"name": f"{name}_stride{d}", "type": "i64", "divisible_by": None} for d in dimensions]
        else:
            passed.append({"name": name, "type": kind, "divisible_by": divisible})
    for name in ("global_scratch", "profile_scratch"):
        passed.append({"name": name, "type": "*i8", "divisible_by": None})
    return passed


PTX_BYTES = {"b32": 4, "u32": 4, "s32": 4, "f32": 4, "b64": 8, "u64": 8, "s64": 8, "f64": 8}
TYPE_BYTES = {"i32": 4, "fp32": 4, "i64": 8, "fp64": 8}


def check_parameters(entry, ptx):
    """Holds the manifest's arguments against the parameters of the PTX."""
    listed = re.search(rf"\.entry {re.escape(entry['entry'])}\((.*?)\n\)", ptx, re.DOTALL)[1]
    found = [PTX_BYTES[kind] for kind in re.findall(r"^\s*\.param \.(\w+)", listed, re.MULTILINE)]
    wanted = [8 if a["type"].startswith("*") else TYPE_BYTES[a["type"]] for a in entry["args"]]
    if found != wanted:
        raise ValueError(f"{entry['name']}: the PTX's parameters have {found} bytes, the manifest's {wanted}")


def say_policies(_backend, stages, _options, _language, _capability):
    """A hook of Triton's: to its stage that makes PTX it adds what l2.py has to say there."""
    to_ptx = stages["ptx"]
    stages["ptx"] = lambda source, metadata: l2.say_so(to_ptx(source, metadata))


triton.knobs.runtime.add_stages_inspection_hook = say_policies


def compile_variant(variant, architecture):
    """[(manifest entry, image)]: the cubin, and the PTX where there is to be one."""
    names = list(variant.arguments)
    if names + list(variant.constants) != variant.function.arg_names:
        raise ValueError(f"{variant.name}: arguments and constants are not those of {variant.function.__name__}, in their order")
    source = (GluonASTSource if variant.function.is_gluon() else ASTSource)(
        variant.function,
        {**variant.arguments, **{c: "constexpr" for c in variant.constants}},
        variant.constants,
        {(names.index(n),): [["tt.divisibility", 16]] for n in variant.divisible},
    )
    target = GPUTarget("cuda", architecture, 32)
    options = {"num_warps": variant.num_warps, "num_stages": variant.num_stages}
    compiled = triton.compile(source, target=target, options=options)
    metadata = compiled.metadata
    cubin = compiled.asm["cubin"]
    if metadata.num_ctas != 1 or metadata.global_scratch_size or metadata.profile_scratch_size:
        raise ValueError(f"{variant.name}: the launchers know neither clusters nor scratch memory")
    if metadata.shared > SHARED_PER_BLOCK[architecture]:
        raise ValueError(f"{variant.name} needs {metadata.shared} bytes of shared memory on sm_{architecture}")
    check_waits(variant.name, compiled.asm["ptx"], variant.dependent)
    if variant.function.is_gluon():
        check_barriers(variant.name, compiled.asm["ptx"])
    registers = registers_per_thread(cubin, metadata.name)
    descriptors = [name for name, kind in variant.arguments.items() if kind.startswith("tensordesc")]
    tensordesc_meta = getattr(metadata, "tensordesc_meta", None)
    suffix = "a" if architecture >= 90 else ""
    blocks = blocks_per_multiprocessor(architecture, registers, metadata.shared, metadata.num_warps, metadata.tmem_size)
    entry = {
        "name": variant.name,
        "arch": f"sm_{architecture}{suffix}",
        "entry": metadata.name,
        "file": f"sm_{architecture}/{variant.name}.cubin",
        "num_warps": metadata.num_warps,
        "shared": metadata.shared,
        "launch_pdl": variant.dependent,
        "args": passed_arguments(variant, tensordesc_meta),
        "constants": variant.constants,
        "tensordesc_meta": [
            {"argument": name, **meta, "l2_promotion": variants.L2_PROMOTION}
            for name, meta in zip(descriptors, tensordesc_meta or [])
        ],
        "grid": {**variant.grid, "blocks_per_multiprocessor": blocks},
        "selects": variant.selects,
    }
    made = [(entry, cubin)]
    if architecture == variants.PTX_ARCHITECTURE and variant.ptx:
        compiled = triton.compile(source, target=target, options={**options, "ptx_version": PTX_VERSION})
        if compiled.metadata.shared > SHARED_PER_BLOCK_LEAST:
            raise ValueError(f"{variant.name} needs {compiled.metadata.shared} bytes of shared memory: too many for PTX")
        ptx = compiled.asm["ptx"]
        check_parameters(entry, ptx)
        # Registers will be the driver's choice; the blocks that fit are those of the architecture it was made for.
        ptx_entry = {"arch": "ptx", "file": f"ptx/{variant.name}.ptx", "shared": compiled.metadata.shared}
        made.append(({**entry, **ptx_entry}, ptx.encode()))
    return made


def _compile(job):
    """compile_variant's result, by the first of the names that gives what is wanted; by the first of all if none does."""
    architecture, index, wanted = job
    variant = variants.variants(architecture)[index]
    first = None
    for longer in NAME_LENGTHS if wanted else NAME_LENGTHS[:1]:
        call_ptxas_by_a_name(longer)
        made = compile_variant(variant, architecture)
        first = first or made
        if all(wanted.get((entry["name"], entry["arch"])) == hashlib.sha256(image).hexdigest() for entry, image in made):
            return made
    return first


def build(architectures, jobs, wanted):
    """All files of the bundle, by path, as bytes. wanted: hashes of images by (name, architecture), or {} if any will do."""
    work = [(a, i, wanted) for a in architectures for i in range(len(variants.variants(a)))]
    with ProcessPoolExecutor(jobs) as pool:
        results = list(pool.map(_compile, work, chunksize=1))
    made = [kernel for result in results for kernel in result]
    files = {entry["file"]: image for entry, image in made}
    # Architecture after architecture, PTX at the end.
    kernels = sorted((entry for entry, _ in made), key=lambda entry: entry["arch"] == "ptx")
    manifest = {
        "abi_version": ABI_VERSION,
        "triton_version": TRITON_VERSION,
        "padding": variants.PADDING,
        "options": {
            "project": grouped.OPTIONS,
            "decode_first": decode.FIRST_OPTIONS,
            "decode_second": decode.SECOND_OPTIONS,
            "combine": combine.OPTIONS,
            "route": route.OPTIONS,
            "gate": gate.OPTIONS,
            "tidy": tidy.OPTIONS,
        },
        "scorings": route.SCORINGS,
        "logits": route.LOGITS,
        "list_words": bucket.LIST_WORDS,
        "count_words": bucket.COUNT_WORDS.value,
        "activations": {
            kind: dict(zip(("code", "linear", "cubic", "limit", "shift"), numbers))
            for kind, numbers in activation.KINDS.items()
        },
        "kernels": kernels,
    }
    files["manifest.json"] = (json.dumps(manifest, indent=1) + "\n").encode()
    return files


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, default=BUNDLE, help="where to put the build instead of bundle/")
    parser.add_argument("--like", type=Path, help=f"a packed manifest, whose images are to be met; exit with {NOT_EXACT} where addresses cannot be fixed")
    options = parser.parse_args()
    if triton.__version__ != TRITON_VERSION:
        sys.exit(f"Triton {TRITON_VERSION} is needed, {triton.__version__} is installed: pip install triton=={TRITON_VERSION}")
    if not fix_addresses():
        print("Address randomization cannot be turned off here: a few kernels may come out with other registers.")
        if options.like:
            sys.exit(NOT_EXACT)
    kernels = json.loads(options.like.read_text())["kernels"] if options.like else []
    wanted = {(kernel["name"], kernel["arch"]): kernel["image"]["sha256"] for kernel in kernels}
    files = build(variants.ARCHITECTURES, options.jobs, wanted)
    shutil.rmtree(options.out, ignore_errors=True)
    for name, data in files.items():
        (options.out / name).parent.mkdir(parents=True, exist_ok=True)
        (options.out / name).write_bytes(data)
    print(f"{len(files)} files, {sum(map(len, files.values())) / 2**20:.1f} MiB, in {options.out}")


if __name__ == "__main__":
    try:
        main()
    finally:
        shutil.rmtree(SCRATCH, ignore_errors=True)
