"""Compiles every kernel ahead of time into bundle/, with a manifest that says how to launch it.

    python build.py            compile into bundle/
    python build.py --check    compile into memory and compare: exit 1 if bundle/ is not what the sources give

Needs Triton 3.6.0 and neither a GPU nor PyTorch. The same sources give the same bytes: line
information, which holds paths, is left out, and nothing is taken from Triton's cache.
"""

import os
import tempfile

# Read by Triton when it is imported. A cache of its own: what an earlier build left must not decide this one.
os.environ["TRITON_DISABLE_LINE_INFO"] = "1"
os.environ["TRITON_CACHE_DIR"] = tempfile.mkdtemp(prefix="nexus-triton-")

import argparse  # noqa: E402
import hashlib  # noqa: E402
import json  # noqa: E402
import shutil  # noqa: E402
import struct  # noqa: E402
import sys  # noqa: E402
from concurrent.futures import ProcessPoolExecutor  # noqa: E402
from pathlib import Path  # noqa: E402

import triton  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

import variants  # noqa: E402
from experts import activation, combine, decode, grouped  # noqa: E402
from routing import bucket, route  # noqa: E402

HERE = Path(__file__).resolve().parent
BUNDLE = HERE / "bundle"
TRITON_VERSION = "3.6.0"
ABI_VERSION = 1
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
# Shared memory that every block takes for the system's own use.
SHARED_RESERVED = 1024


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
    for name, kind in variant.arguments.items():
        divisible = 16 if name in variant.divisible else None
        if kind.startswith("tensordesc") and tensordesc_meta:
            passed.append({"name": name, "type": "tensormap", "divisible_by": None})
            passed += [{"name": f"{name}_shape{d}", "type": "i32", "divisible_by": None} for d in range(2)]
            passed += [{"name": f"{name}_stride{d}", "type": "i64", "divisible_by": None} for d in range(2)]
        else:
            passed.append({"name": name, "type": kind, "divisible_by": divisible})
    for name in ("global_scratch", "profile_scratch"):
        passed.append({"name": name, "type": "*i8", "divisible_by": None})
    return passed


def compile_variant(variant, architecture, want_ptx):
    """(manifest entry, cubin, PTX or None)."""
    names = list(variant.arguments)
    source = ASTSource(
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
    if metadata.shared > SHARED_PER_BLOCK[architecture]:
        raise ValueError(f"{variant.name} needs {metadata.shared} bytes of shared memory on sm_{architecture}")
    registers = registers_per_thread(cubin, metadata.name)
    tensordesc_meta = getattr(metadata, "tensordesc_meta", None)
    suffix = "a" if architecture >= 90 else ""
    blocks = blocks_per_multiprocessor(architecture, registers, metadata.shared, metadata.num_warps, metadata.tmem_size)
    entry = {
        "name": variant.name,
        "arch": f"sm_{architecture}{suffix}",
        "entry": metadata.name,
        "cubin": f"sm_{architecture}/{variant.name}.cubin",
        "cubin_sha256": hashlib.sha256(cubin).hexdigest(),
        "num_warps": metadata.num_warps,
        "num_ctas": metadata.num_ctas,
        "num_stages": variant.num_stages,
        "shared": metadata.shared,
        "registers": registers,
        "global_scratch_size": metadata.global_scratch_size,
        "global_scratch_align": metadata.global_scratch_align,
        "profile_scratch_size": metadata.profile_scratch_size,
        "profile_scratch_align": metadata.profile_scratch_align,
        "launch_pdl": False,
        "args": passed_arguments(variant, tensordesc_meta),
        "constants": variant.constants,
        "tensordesc_meta": tensordesc_meta or [],
        "grid": {**variant.grid, "blocks_per_multiprocessor": blocks},
        "selects": variant.selects,
    }
    ptx = None
    if want_ptx and variant.ptx:
        ptx = triton.compile(source, target=target, options={**options, "ptx_version": PTX_VERSION}).asm["ptx"]
        entry["ptx"] = f"ptx/{variant.name}.ptx"
        entry["ptx_sha256"] = hashlib.sha256(ptx.encode()).hexdigest()
    return entry, cubin, ptx


def _compile(job):
    architecture, index = job
    variant = variants.variants(architecture)[index]
    return compile_variant(variant, architecture, architecture in variants.PTX_ARCHITECTURES)


def source_hashes():
    files = sorted([*HERE.glob("experts/*.py"), *HERE.glob("routing/*.py"), HERE / "variants.py", HERE / "build.py"])
    return {str(f.relative_to(HERE)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def build(architectures, jobs):
    """All files of the bundle, by path, as bytes."""
    work = [(a, i) for a in architectures for i in range(len(variants.variants(a)))]
    with ProcessPoolExecutor(jobs) as pool:
        results = list(pool.map(_compile, work, chunksize=1))
    files = {}
    kernels = []
    for entry, cubin, ptx in results:
        kernels.append(entry)
        files[entry["cubin"]] = cubin
        if ptx is not None:
            files[entry["ptx"]] = ptx.encode()
    manifest = {
        "abi_version": ABI_VERSION,
        "triton_version": TRITON_VERSION,
        "padding": variants.PADDING,
        "options": {
            "project": grouped.OPTIONS,
            "decode_first": {k: v for k, v in grouped.OPTIONS.items() if k in ("bias", "input_scale")},
            "decode_second": decode.SECOND_OPTIONS,
            "combine": combine.OPTIONS,
            "route": route.OPTIONS,
        },
        "scorings": route.SCORINGS,
        "list_words": bucket.LIST_WORDS,
        "activations": {
            kind: dict(zip(("code", "linear", "cubic", "limit", "shift"), numbers))
            for kind, numbers in activation.KINDS.items()
        },
        "sources_sha256": source_hashes(),
        "kernels": kernels,
    }
    files["manifest.json"] = (json.dumps(manifest, indent=1) + "\n").encode()
    return files


def differences(files):
    """Why bundle/ is not `files`; empty if it is."""
    there = {str(f.relative_to(BUNDLE)): f for f in BUNDLE.rglob("*") if f.is_file()}
    found = [f"missing: {name}" for name in sorted(files.keys() - there.keys())]
    found += [f"not built by these sources: {name}" for name in sorted(there.keys() - files.keys())]
    found += [f"differs: {name}" for name in sorted(files.keys() & there.keys()) if there[name].read_bytes() != files[name]]
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare with bundle/ instead of writing it")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    options = parser.parse_args()
    if triton.__version__ != TRITON_VERSION:
        sys.exit(f"Triton {TRITON_VERSION} is needed, {triton.__version__} is installed: pip install triton=={TRITON_VERSION}")
    files = build(variants.ARCHITECTURES, options.jobs)
    if options.check:
        found = differences(files)
        print("\n".join(found) if found else f"bundle/ is what the sources give ({len(files)} files)")
        sys.exit(1 if found else 0)
    shutil.rmtree(BUNDLE, ignore_errors=True)
    for name, data in files.items():
        (BUNDLE / name).parent.mkdir(parents=True, exist_ok=True)
        (BUNDLE / name).write_bytes(data)
    print(f"{len(files)} files, {sum(map(len, files.values())) / 2**20:.1f} MiB, in {BUNDLE}")


if __name__ == "__main__":
    try:
        main()
    finally:
        shutil.rmtree(os.environ["TRITON_CACHE_DIR"], ignore_errors=True)
