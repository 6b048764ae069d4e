"""Launches the bundle's kernels through the driver, as a program without Triton does.

For test_experts.py and bench_experts.py: it follows the manifest and nothing else, so what they prove holds for the
TypeScript loader as well. PyTorch allocates memory and owns the context; kernels go to its current stream.
"""

import ctypes
import json
import math
from pathlib import Path

import torch

from layout import PANEL, sizes
from packed_layout import Packed

TENSOR_MAP_BYTES = 128
# Attributes of cuda.h, by name.
FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED = 8
# Above this much dynamic shared memory a kernel must ask for it.
SHARED_WITHOUT_ASKING = 49152

cuda = ctypes.CDLL("libcuda.so.1")


class LaunchConfig(ctypes.Structure):
    _fields_ = [
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.c_void_p),
        ("attribute_count", ctypes.c_uint),
    ]


class LaunchAttribute(ctypes.Structure):
    _fields_ = [("id", ctypes.c_uint), ("padding", ctypes.c_uint), ("value", ctypes.c_int), ("rest", ctypes.c_char * 60)]


# CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION: the kernel may start before the one ahead of it has ended.
DEPENDENT_LAUNCH = LaunchAttribute(id=6, value=1)


def check(code, call):
    if code != 0:
        name = ctypes.c_char_p()
        cuda.cuGetErrorName(code, ctypes.byref(name))
        raise RuntimeError(f"{call}: {name.value.decode() if name.value else code}")


SCALARS = {"i32": ctypes.c_int32, "i64": ctypes.c_int64, "fp32": ctypes.c_float, "fp64": ctypes.c_double}
# Element type and size as cuTensorMapEncodeTiled names them.
TENSOR_MAP_TYPES = {torch.int32: 3, torch.float16: 6, torch.float32: 7, torch.bfloat16: 9}


class TensorMap:
    """A CUtensorMap over a contiguous tensor, in memory aligned as the driver asks; of two dimensions its rows, one below the
    other."""

    def __init__(self, tensor, meta):
        self.storage = ctypes.create_string_buffer(2 * TENSOR_MAP_BYTES)
        address = ctypes.addressof(self.storage)
        self.address = address + (-address) % TENSOR_MAP_BYTES
        box = meta["block_size"][::-1]
        # From the innermost on; the innermost's stride is the element itself.
        extents = tensor.shape[::-1] if len(box) > 2 else (tensor.shape[-1], tensor.numel() // tensor.shape[-1])
        strides = [math.prod(extents[: i + 1]) * tensor.element_size() for i in range(len(box) - 1)]
        code = cuda.cuTensorMapEncodeTiled(
            ctypes.c_void_p(self.address),
            TENSOR_MAP_TYPES[tensor.dtype],
            len(box),
            ctypes.c_void_p(tensor.data_ptr()),
            (ctypes.c_uint64 * len(box))(*extents),
            (ctypes.c_uint64 * len(strides))(*strides),
            (ctypes.c_uint32 * len(box))(*box),
            (ctypes.c_uint32 * len(box))(*[1] * len(box)),
            0,
            meta["swizzle"],
            meta["l2_promotion"],
            0,
        )
        check(code, "cuTensorMapEncodeTiled")


class Kernel:
    def __init__(self, entry, directory):
        self.entry = entry
        self.name = entry["name"]
        self.grid = entry["grid"]
        self.constants = entry["constants"]
        image = (directory / entry["file"]).read_bytes()
        module = ctypes.c_void_p()
        check(cuda.cuModuleLoadData(ctypes.byref(module), image), f"cuModuleLoadData({self.name})")
        self.function = ctypes.c_void_p()
        check(cuda.cuModuleGetFunction(ctypes.byref(self.function), module, entry["entry"].encode()), "cuModuleGetFunction")
        if entry["shared"] > SHARED_WITHOUT_ASKING:
            code = cuda.cuFuncSetAttribute(self.function, FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED, entry["shared"])
            check(code, "cuFuncSetAttribute")
        self.check_parameters()
        self.maps = {}

    def check_parameters(self):
        """Holds the manifest against what the cubin itself says of its parameters."""
        sizes = {"i32": 4, "fp32": 4, "i64": 8, "tensormap": TENSOR_MAP_BYTES}
        offset, size = ctypes.c_size_t(), ctypes.c_size_t()
        for i, argument in enumerate(self.entry["args"]):
            code = cuda.cuFuncGetParamInfo(self.function, ctypes.c_size_t(i), ctypes.byref(offset), ctypes.byref(size))
            check(code, f"cuFuncGetParamInfo({self.name}, {argument['name']})")
            assert size.value == sizes.get(argument["type"], 8), (self.name, argument, size.value)
        beyond = ctypes.c_size_t(len(self.entry["args"]))
        assert cuda.cuFuncGetParamInfo(self.function, beyond, ctypes.byref(offset), ctypes.byref(size)) != 0, self.name

    def _parameter(self, argument, values):
        name, kind = argument["name"], argument["type"]
        if kind == "tensormap":
            tensor = values[name]
            assert tensor.is_contiguous(), name
            key = (name, tensor.data_ptr(), tensor.shape)
            if key not in self.maps:
                meta = next(meta for meta in self.entry["tensordesc_meta"] if meta["argument"] == name)
                self.maps[key] = TensorMap(tensor, meta)
            return None, self.maps[key].address
        if name.endswith("_scratch"):
            value = ctypes.c_void_p(0)
        elif kind.startswith("*"):
            tensor = values[name]
            value = ctypes.c_void_p(0 if tensor is None else tensor.data_ptr())
        elif name not in values:
            # Triton passes a descriptor's shape and strides a second time; these kernels do not read them.
            value = SCALARS[kind](0)
        else:
            number = values[name]
            assert argument["divisible_by"] is None or number % argument["divisible_by"] == 0, (self.name, name, number)
            value = SCALARS[kind](number)
        return value, ctypes.addressof(value)

    def launch(self, grid, values):
        """Dependent kernels start early behind whatever is in front: unlike the runtime (operators/kernel-work.ts) nothing here
        knows which may do so behind products only, so steps are put together with a copy or a product there."""
        kept = [self._parameter(argument, values) for argument in self.entry["args"]]
        parameters = (ctypes.c_void_p * len(kept))(*[address for _, address in kept])
        config = LaunchConfig(
            (ctypes.c_uint * 3)(*grid),
            (ctypes.c_uint * 3)(32 * self.entry["num_warps"], 1, 1),
            self.entry["shared"],
            torch.cuda.current_stream().cuda_stream,
            ctypes.addressof(DEPENDENT_LAUNCH),
            1 if self.entry["launch_pdl"] else 0,
        )
        check(cuda.cuLaunchKernelEx(ctypes.byref(config), self.function, parameters, None), f"launch of {self.name}")


class Bundle:
    """Kernels of one architecture, loaded when first asked for."""

    def __init__(self, directory, architecture="sm_90a"):
        self.directory = Path(directory)
        self.manifest = json.loads((self.directory / "manifest.json").read_text())
        self.entries = {k["name"]: k for k in self.manifest["kernels"] if k["arch"] == architecture}
        self.loaded = {}

    def __getitem__(self, name):
        if name not in self.loaded:
            self.loaded[name] = Kernel(self.entries[name], self.directory)
        return self.loaded[name]


def in_range(offered, value):
    return offered.get("least", value) <= value <= offered.get("most", value)


def decode_first_name(bundle, kind, short):
    """The kernel for a first product of `kind`, such as "gated_logistic"."""
    return next(name for name in bundle.entries if name.startswith(f"decode_first_{kind}_{short}_"))


def decode_second_names(bundle, short, out_short, k):
    """The kernels for a second product that reads k columns, one for each tile, in the manifest's order."""
    names = [name for name in bundle.entries if name.startswith(f"decode_second_{short}_{out_short}_")]
    return [name for name in names if in_range(bundle.entries[name]["selects"]["k"], k)]


def decode_second_name(bundle, short, out_short, *, most_tokens, n, k, multiprocessors):
    """The one of them that operators/choice.ts picks."""
    def fill(name):
        grid = bundle.entries[name]["grid"]
        programs = most_tokens * n // grid["y"]["by"]
        waves = programs / (multiprocessors * grid["blocks_per_multiprocessor"])
        return waves / math.ceil(waves) if waves > 1 else 1

    names = decode_second_names(bundle, short, out_short, k)
    return next(name for name in names if fill(name) >= max(map(fill, names)) - 0.1)


def project_name(bundle, short, gated, height, k, gather, in_step=False, bias=False):
    """The 16-bit kernel for a product with logistic gates, or none, and no input scale, as operators/choice.ts picks it."""
    name = f"project_{'gated_logistic' if gated else 'plain_identity'}"
    many_name = f"{name}_{'bias_' if bias else ''}{short}_many{height}"
    many = bundle.entries.get(many_name, {}).get("selects")
    serves = many and in_range(many["k"], k) and (many["gather"] or not gather) and (in_step or not many.get("in_step"))
    return many_name if serves else tall_enough(bundle, f"{name}_{'extras_' if bias else ''}{short}", height)


def tall_enough(bundle, name, height):
    """The lowest of grouped.py's kernels of this name that takes tiles of so many rows."""
    heights = [int(each.removeprefix(f"{name}_rows")) for each in bundle.entries if each.startswith(f"{name}_rows")]
    return f"{name}_rows{min(h for h in heights if h >= height)}"


def activation_values(manifest, kind, alpha=1.702, limit=7.0):
    """The activation's arguments: the manifest's numbers with its own parameters put in."""
    values = dict(manifest["activations"][kind])
    own = {"alpha": alpha, "limit": limit, None: float("inf")}
    return {k: own[v] if v is None or isinstance(v, str) else v for k, v in values.items()}


def project_options(bundle, **given):
    """The bits of a product's options that are set."""
    bits = bundle.manifest["options"]["project"]
    return sum(bits[name] for name, value in given.items() if value)


def project(bundle, kernel, x, w, out, tiles, tile_count, *, most_tiles, multiprocessors, activation="none",
            order=None, gather=False, top_k=1, bias=None, input_scale=None, dense=False, matrix=0, group=8, half_time=False,
            in_step=False, claim=False, read_once=False, keep=False, alpha=1.702, limit=7.0):
    """w is [matrices, k / 64, n, 64]; most_tiles is what the list has room for, so many rows of `tiles`; tile_count is as
    `list_counts` makes it, or, of a dense product, the rows."""
    n, k = sizes(w)
    columns = -(-n // kernel.grid["columns_per_block"])
    grid = most_tiles * columns
    if not (kernel.grid.get("covers") and multiprocessors >= torch.cuda.get_device_properties(x.device).multi_processor_count):
        grid = min(multiprocessors * kernel.grid["blocks_per_multiprocessor"], grid)
    kernel.launch((grid, 1, 1), {
        "x": x, "w": w, "bias": bias, "out": out, "tiles": tiles, "tile_count": tile_count, "order": order,
        "input_scale": input_scale, "n": n, "k": k, "x_pitch": x.shape[1], "out_pitch": out.shape[1], "top_k": top_k,
        "dense_matrix": matrix, "group": group,
        "options": project_options(
            bundle, gather=gather, bias=bias is not None, dense=dense, input_scale=input_scale is not None, half_time=half_time,
            in_step=in_step, claim=claim, read_once=read_once, keep=keep,
        ),
        **activation_values(bundle.manifest, activation, alpha, limit),
    })


def decode_routing_names(bundle, element, experts, packed=False):
    """The kernels for a gated first product with a logistic that route up to so many experts along."""
    wanted = ("decode_packed_first" if packed else "decode_first", element, True)
    selects = {name: entry["selects"] for name, entry in bundle.entries.items()}
    return [
        name for name, each in selects.items()
        if (each["operator"], each.get("element"), each.get("routes")) == wanted and in_range(each["experts"], experts)
    ]


def weight_values(w):
    """What decode kernels are told of weights, plain panels or Packed."""
    if isinstance(w, Packed):
        return {**w.parts(), "n": w.n, "k": w.k}
    n, k = sizes(w)
    return {"w": w, "n": n, "k": k}


def decode_first_values(bundle, x, w, out, *, top_k, activation, bias, read_once, alpha, limit):
    """What decode_first and decode_routing both take."""
    options = bundle.manifest["options"]["decode_first"]
    return {
        **weight_values(w), "x": x, "bias": bias, "out": out, "x_pitch": x.shape[1], "out_pitch": out.shape[1], "top_k": top_k,
        "options": options["bias"] * (bias is not None) | options["read_once"] * read_once,
        **activation_values(bundle.manifest, activation, alpha, limit),
    }


def decode_first(bundle, kernel, x, w, out, ids, tokens, *, slots, top_k, activation, bias=None, input_scale=None,
                 read_once=False, alpha=1.702, limit=7.0):
    values = decode_first_values(bundle, x, w, out, top_k=top_k, activation=activation, bias=bias, read_once=read_once,
                                 alpha=alpha, limit=limit)
    scaled = bundle.manifest["options"]["decode_first"]["input_scale"] * (input_scale is not None)
    kernel.launch(covering(kernel.grid, slots=slots, n=values["n"]), {
        **values, "ids": ids, "input_scale": input_scale, "tokens": tokens, "options": values["options"] | scaled,
    })


def decode_routing(bundle, kernel, x, w, out, logits, ids, weights, counts, fault, tokens, *, counts_host, fault_host, scoring,
                   renormalize=False, scale=1.0, bias=None, activation="silu", read_once=False, alpha=1.702, limit=7.0):
    """For as many tokens as `ids` and `weights` have rows."""
    most_tokens, top_k = ids.shape
    values = decode_first_values(bundle, x, w, out, top_k=top_k, activation=activation, bias=bias, read_once=read_once,
                                 alpha=alpha, limit=limit)
    manifest = bundle.manifest
    kernel.launch(covering(kernel.grid, slots=ids.numel(), n=values["n"]), {
        **values, "logits": logits, "logits_kind": manifest["logits"][str(logits.dtype).removeprefix("torch.")],
        "ids": ids, "weights": weights, "counts": counts, "counts_host": counts_host, "fault": fault, "fault_host": fault_host,
        "tokens": tokens, "experts": logits.shape[1],
        "most_tokens": most_tokens, "scoring": manifest["scorings"][scoring], "scale": scale,
        "route_options": manifest["options"]["route"]["renormalize"] * renormalize,
    })


def aggregation_options(options, weights, shared, shared_scale, residual, bias=None):
    given = {"weights": weights, "shared": shared, "shared_scale": shared_scale, "residual": residual, "bias": bias}
    return sum(options.get(name, 0) for name, tensor in given.items() if tensor is not None)


def tidying_values(bundle, prefix="", *, counts=None, out=None, counts_host=None, fault=None, fault_host=None, clear=False):
    """The parameters of tidy, with a prefix those of a kernel that does it along with its own work; by default nothing to do."""
    options = bundle.manifest["options"]["tidy"]
    asked = {"out": out, "counts_host": counts_host, "fault_host": fault_host}
    values = {
        "counts": counts, "fault": fault, **asked, "experts": 0 if counts is None else counts.numel(),
        "options": sum(options[name] for name, tensor in asked.items() if tensor is not None) | options["clear"] * clear,
    }
    return {f"{prefix}{name}": value for name, value in values.items()}


def tidy(bundle, kernel, tidying):
    values = tidying_values(bundle, **tidying)
    kernel.launch(covering(kernel.grid, experts=values["experts"]), values)


def decode_second(bundle, kernel, x, w, ids, out, tokens, *, most_tokens, top_k, weights=None, bias=None, shared=None,
                  shared_scale=None, residual=None, tidying=None, read_once=False):
    given = weight_values(w)
    n = given["n"]
    options = bundle.manifest["options"]["decode_second"]
    kernel.launch(covering(kernel.grid, tokens=most_tokens, n=n), {
        **given, "x": x, "bias": bias, "ids": ids, "weights": weights, "shared": shared, "shared_scale": shared_scale,
        "residual": residual, "out": out, "tokens": tokens, "width": out.shape[1],
        "x_pitch": x.shape[1], "row_pitch": n, "top_k": top_k,
        "options": (aggregation_options(options, weights, shared, shared_scale, residual, bias)
                    | options["read_once"] * read_once),
        **tidying_values(bundle, "tidy_", **(tidying or {})),
    })


def covering(grid, **sizes):
    """The grid of a "cover" rule."""
    extents = [grid.get(axis, "one") for axis in "xyz"]
    extents = [{"of": extent, "by": 1} if isinstance(extent, str) else extent for extent in extents]
    return tuple(-(-{"one": 1, **sizes}[extent["of"]] // extent["by"]) + extent.get("more", 0) for extent in extents)


def gate(bundle, kernel, x, w, out, tokens, *, most_tokens, bias=None, sigmoid=False):
    """w is [padded n, k], out [*, n]."""
    options = bundle.manifest["options"]["gate"]
    n = out.shape[1]
    kernel.launch(covering(kernel.grid, n=n, most_tokens=most_tokens), {
        "x": x, "w": w, "bias": bias, "out": out, "tokens": tokens, "n": n, "k": w.shape[1], "x_pitch": x.shape[1],
        "options": options["bias"] * (bias is not None) | options["sigmoid"] * sigmoid,
    })


def combine(bundle, kernel, rows, inverse, out, tokens, *, most_tokens, top_k, multiprocessors, weights=None,
            shared=None, shared_scale=None, residual=None, tidying=None, spent=(), inner=None):
    """Sum or concat, by the kernel; the sum tidies up along with it, and drops what is `spent`: "rows", "inner"."""
    options = bundle.manifest["options"]["combine"]
    concat = kernel.entry["selects"]["mode"] == "concat"
    width = out.shape[1] // top_k if concat else out.shape[1]
    stretches = -(-width // kernel.grid["columns_per_block"])
    most = most_tokens * (top_k if concat else 1) * stretches
    grid = min(multiprocessors * kernel.grid["blocks_per_multiprocessor"], most)
    kernel.launch((grid, 1, 1), {
        "rows": rows, "inner": inner, "inverse": inverse, "weights": weights, "shared": shared, "shared_scale": shared_scale,
        "residual": residual, "out": out, "tokens": tokens, "width": width, "row_pitch": rows.shape[1],
        "inner_pitch": 0 if inner is None else inner.shape[1], "top_k": top_k,
        "options": (aggregation_options(options, weights, shared, shared_scale, residual)
                    | sum(options[f"{name}_spent"] for name in spent)),
        **tidying_values(bundle, "tidy_", **(tidying or {})),
    })


def pack(kernel, source, destination, row_step, pitch, multiprocessors, panel_step=PANEL, first_column=0):
    """A 2-D tensor of any strides to the address of `destination`, by default to rows in one piece."""
    rows, columns = source.shape
    stretches = -(-pitch // kernel.grid["columns_per_block"])
    grid = min(multiprocessors * kernel.grid["blocks_per_multiprocessor"], rows * stretches)
    kernel.launch((grid, 1, 1), {
        "source": source, "destination": destination, "rows": rows, "columns": columns,
        "row_stride": source.stride(0), "column_stride": source.stride(1), "row_step": row_step, "pitch": pitch,
        "panel_step": panel_step, "first_column": first_column,
    })


def pack_matrix(kernel, source, destination, part, parts, multiprocessors):
    """A matrix to the panels [k / 64, n, 64] of an expert."""
    panels, n, panel = destination.shape
    pack(kernel, source, destination[0, part], parts * panel, panels * panel, multiprocessors, panel_step=n * panel)


def fill_uniform(kernel, destination, seed, scale, valid_rows, valid_columns, multiprocessors):
    """destination is [matrices, k / 64, n, 64], or [matrices, n, k]."""
    in_panels = destination.dim() == 4
    matrices = destination.shape[0]
    n, k = sizes(destination) if in_panels else destination.shape[1:]
    stretches = -(-valid_columns // kernel.grid["columns_per_block"])
    grid = min(multiprocessors * kernel.grid["blocks_per_multiprocessor"], matrices * valid_rows * stretches)
    kernel.launch((grid, 1, 1), {
        "destination": destination, "seed": seed, "matrices": matrices, "n": n, "k": k, "valid_rows": valid_rows,
        "valid_columns": valid_columns, "scale": scale, "row_step": PANEL if in_panels else k,
        "panel_step": PANEL * n if in_panels else PANEL,
    })
