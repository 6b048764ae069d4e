"""Launches the kernels for weights of 12 bits, as launch.py does others: weights into words, and products with them."""

from launch import activation_values, project_options
from layout import sizes
from packed_layout import Packed


def pack_weights(bundle, w, multiprocessors, valid_columns=None):
    """Panels [matrices, k / 64, n, 64] of bfloat16 as Packed."""
    n, k = sizes(w)
    packed = Packed(w.shape[0], n, k, w.device)
    kernel = bundle["pack_weights_bf16"]
    grid = min(multiprocessors * kernel.grid["blocks_per_multiprocessor"], packed.matrices * packed.groups)
    kernel.launch((grid, 1, 1), {
        "source": w, **packed.parts(), "failures": packed.failures, "matrices": packed.matrices, "n": n, "k": k,
        "valid_columns": k if valid_columns is None else valid_columns,
    })
    return packed


def packed_name(gated, height, bias=False):
    return f"project_{'gated_logistic' if gated else 'plain_identity'}_{'bias_' if bias else ''}bf16_packed{max(height, 32)}"


def project_packed(bundle, kernel, x, packed, out, tiles, tile_count, *, most_tiles, multiprocessors, activation="none", order=None,
                   gather=False, top_k=1, bias=None, bias_last=False, in_step=False, claim=False, read_once=False, keep=False,
                   alpha=1.702, limit=7.0):
    """As launch.project, of a list."""
    columns = -(-packed.n // kernel.grid["columns_per_block"])
    grid = min(multiprocessors * kernel.grid["blocks_per_multiprocessor"], most_tiles * columns)
    kernel.launch((grid, 1, 1), {
        "x": x, "w": packed.words, **packed.parts(), "bias": bias, "out": out, "tiles": tiles, "tile_count": tile_count,
        "order": order, "n": packed.n, "k": packed.k,
        "x_pitch": x.shape[1], "out_pitch": out.shape[1], "top_k": top_k,
        "options": project_options(
            bundle, gather=gather, bias=bias is not None, bias_last=bias_last, in_step=in_step, claim=claim, read_once=read_once,
            keep=keep,
        ),
        **activation_values(bundle.manifest, activation, alpha, limit),
    })
