"""Compile the Triton kernels for an H200, without one, and report what ptxas made of them: JSON rows.

Run by test_compiled.py in a process of its own: with TRITON_INTERPRET set, nothing can be compiled.
`python tests/kernels/compile_sm90.py NAME...` prints the rows of the named variants, or of all.
"""

import json
import pathlib
import re
import subprocess
import sys
import tempfile
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from headway.kernels.antidiagonal.gpu import antidiagonal_constants, antidiagonal_kernel
from headway.kernels.last_queries.gpu import normalise_kernel, sum_constants, sum_kernel
from headway.kernels.listed_scores.gpu import listed_constants, listed_kernel
from headway.kernels.margin_columns.gpu import margin_constants, margin_kernel
from headway.kernels.merge_states.gpu import merge_kernel
from headway.kernels.page_summary.gpu import summarise_kernel, summary_constants
from headway.kernels.paged_attention.gpu import block_rows, kernel_constants
from headway.kernels.paged_attention.gpu_kernel import attend_kernel
from headway.kernels.selected_attention.gpu import merge_constants, selected_constants
from headway.kernels.selected_attention.gpu_kernel import attend_selected_kernel, merge_splits_kernel
from headway.kernels.store_kv.gpu import store_kernel
from headway.kernels.tile_attention.gpu import tile_constants
from headway.kernels.tile_attention.gpu_kernel import attend_tile_kernel
from headway.kernels.top_k.gpu import long_constants, short_constants
from headway.kernels.top_k.gpu_kernels import digit_kernel, short_kernel, write_kernel
from headway.kernels.unit_scores.gpu import score_constants, score_kernel

HALF = ("query", "key", "value", "key_cache", "value_cache", "sinks")
INT32 = ("cu_seqlens_q", "kv_lens", "block_table", "tiles", "rows", "indices")
FP32 = ("lse", "lses", "limits")
UNIT_STRIDES = re.compile(
    r".*(key|value|query|outs?|cache|table|bounds|mean)_dim$|lse_head$|list_unit$|active_row$"
)


def chunk(
    key_dim: int, value_dim: int, group: int, rows: int = 128, page_size: int = 64, **features: bool
) -> Any:
    kinds = dict.fromkeys(("exact", "split", "window", "softcap", "sinks", "shared"), False) | features
    block_m = block_rows(rows, key_dim, kinds["exact"])
    constants = kernel_constants(key_dim, value_dim, group, page_size, block_m, **kinds)
    return attend_kernel, constants, {"out": "fp32" if kinds["split"] else "bf16"}


def decode(key_dim: int, value_dim: int, group: int, **features: Any) -> Any:
    return chunk(key_dim, value_dim, group, rows=group, **({"split": True} | features))


def selected(
    key_dim: int, value_dim: int, heads: tuple[int, int], num_lists: int, unit: int, **features: bool
) -> Any:
    kinds = dict.fromkeys(("exact", "softcap", "sinks", "shared", "active"), False) | features
    constants = selected_constants(key_dim, value_dim, *heads, num_lists, 64, unit, **kinds)
    return attend_selected_kernel, constants, {"out": "fp32", "active": "i1"}


def tiles(key_dim: int, value_dim: int, heads: tuple[int, int], lanes: int, **features: bool) -> Any:
    names = ("exact", "softcap", "sinks", "shared", "local", "spans", "columns", "initial")
    kinds = dict.fromkeys(names, False) | features
    constants = tile_constants(key_dim, value_dim, *heads, lanes, 64, 128, **kinds)
    half = "fp32" if kinds["exact"] else "bf16"
    lists = dict.fromkeys(("local_from", "spans", "columns", "span_ends", "column_ends"), "i32")
    return attend_tile_kernel, constants, lists | {"out": half, "initial_out": half, "initial_lse": "fp32"}


TOP_K = {"scores": "fp32", "limits": "i64"} | dict.fromkeys(
    ("out", "histograms", "states", "above", "last_histograms", "last_states", "last_above"), "i32"
)

PROBE = {"scores": "fp32", "active": "i1", "pages": "i64", "filled": "i64", "bounds": "bf16", "mean": "bf16"}


def score(dim: int, group: int, units: int, reduce: Any, narrower: bool = False, **features: bool) -> Any:
    kinds = dict.fromkeys(("exact", "softcap", "active"), False) | features
    constants = score_constants(dim, group, units, 64, reduce, **kinds)
    return score_kernel, constants, PROBE | {"table": "fp32" if kinds["exact"] and not narrower else "bf16"}


def listed(dim: int, group: int, unit: int, **features: bool) -> Any:
    kinds = dict.fromkeys(("exact", "softcap", "active"), False) | features
    return listed_kernel, listed_constants(dim, group, 64, unit, **kinds), PROBE


def margin(dim: int, group: int, rows: int = 16, exact: bool = False) -> Any:
    return margin_kernel, margin_constants(dim, group, 64, rows, exact=exact), {"kept": "i1"}


def antidiagonal(dim: int, group: int, unit: int, exact: bool = False, softcap: bool = False) -> Any:
    constants = antidiagonal_constants(dim, group, 64, 16, unit, exact=exact, softcap=softcap)
    return antidiagonal_kernel, constants, {}


LAST = {"parts": "fp32", "vertical": "fp32", "slash": "fp32"}


def last(
    kernel: Any, dim: int, group: int, rows: int = 64, exact: bool = False, softcap: bool = False
) -> Any:
    return kernel, sum_constants(dim, group, 64, rows, exact=exact, softcap=softcap), LAST


VARIANTS: dict[str, Any] = {
    "decode 64": lambda: decode(64, 64, 8),
    "decode 128": lambda: decode(128, 128, 4),
    "decode 256": lambda: decode(256, 256, 4),
    "decode mla": lambda: decode(576, 512, 128, shared=True),
    "chunk 64": lambda: chunk(64, 64, 8),
    "chunk 128": lambda: chunk(128, 128, 4),
    "chunk 256": lambda: chunk(256, 256, 4),
    "chunk mla": lambda: chunk(576, 512, 128, shared=True),
    "decode 128 one split": lambda: decode(128, 128, 4, split=False),
    "decode 80": lambda: decode(80, 80, 1),
    "decode 96": lambda: decode(96, 96, 1),
    "decode 64 mqa": lambda: decode(64, 64, 71),
    "decode 256 mqa": lambda: decode(256, 256, 64),
    "decode mla tp8": lambda: decode(576, 512, 16, shared=True),
    "decode 128 page 16": lambda: decode(128, 128, 4, page_size=16),
    "decode 128 page 1": lambda: decode(128, 128, 4, page_size=1),
    "decode 64 gpt-oss": lambda: decode(64, 64, 8, window=True, sinks=True),
    "decode 256 gemma-2": lambda: decode(256, 256, 2, window=True, softcap=True),
    "decode 128 fp32": lambda: decode(128, 128, 4, exact=True),
    "chunk 64 gpt-oss": lambda: chunk(64, 64, 8, window=True, sinks=True),
    "chunk 96": lambda: chunk(96, 96, 1),
    "chunk 128 window": lambda: chunk(128, 128, 4, window=True),
    "chunk 128 split": lambda: chunk(128, 128, 4, split=True),
    "chunk 256 gemma-2": lambda: chunk(256, 256, 2, window=True, softcap=True),
    "chunk 192/128": lambda: chunk(192, 128, 1),
    "chunk 128 fp32": lambda: chunk(128, 128, 4, exact=True),
    "merge 128": lambda: (
        merge_kernel,
        {"DIM": 128, "BLOCK_D": 128, "HAS_ROWS": True, "num_warps": 2},
        {"outs": "fp32", "out": "bf16"},
    ),
    "store 8x128": lambda: (
        store_kernel,
        {"PAGE_SIZE": 64, "BLOCK": 1024, "HAS_VALUE": True, "num_warps": 4}
        | {"KEY_DIM": 128, "VALUE_DIM": 128, "KEY_ROW": 1024, "VALUE_ROW": 1024},
        {"slot_mapping": "i64"},
    ),
    "decode selected 128 tokens": lambda: selected(128, 128, (32, 8), 8, 1, active=True),
    "decode selected 128 pages": lambda: selected(128, 128, (32, 8), 8, 64),
    "decode selected 128 per head": lambda: selected(128, 128, (32, 8), 32, 16),
    "decode selected 64 gpt-oss": lambda: selected(64, 64, (64, 8), 1, 1, sinks=True),
    "decode selected 256 gemma-2": lambda: selected(256, 256, (16, 8), 8, 64, softcap=True),
    "decode selected mla": lambda: selected(576, 512, (128, 1), 1, 1, shared=True),
    "decode selected 128 fp32": lambda: selected(128, 128, (32, 8), 8, 1, exact=True),
    "merge selected 128": lambda: (
        merge_splits_kernel,
        merge_constants(66, 128, active=True),
        {"outs": "fp32", "out": "bf16", "active": "i1"},
    ),
    "merge selected mla": lambda: (
        merge_splits_kernel,
        merge_constants(128, 512, active=False),
        {"outs": "fp32", "out": "bf16", "active": "i1"},
    ),
    "chunk tiles 64": lambda: tiles(64, 64, (64, 8), 8, local=True, spans=True),
    "chunk tiles 128": lambda: tiles(128, 128, (32, 8), 32, local=True, spans=True, columns=True),
    "chunk tiles 256": lambda: tiles(256, 256, (16, 8), 16, local=True, spans=True, columns=True),
    "chunk tiles 128 spans": lambda: tiles(128, 128, (32, 8), 8, local=True, spans=True),
    "chunk tiles 128 streaming": lambda: tiles(128, 128, (32, 8), 8, local=True),
    "chunk tiles 128 second pass": lambda: tiles(128, 128, (32, 8), 8, columns=True, initial=True),
    "chunk tiles 64 gpt-oss": lambda: tiles(64, 64, (64, 8), 64, local=True, columns=True, sinks=True),
    "chunk tiles 256 gemma-2": lambda: tiles(256, 256, (16, 8), 8, local=True, spans=True, softcap=True),
    "chunk tiles mla": lambda: tiles(
        576, 512, (128, 1), 1, local=True, spans=True, columns=True, shared=True
    ),
    "chunk tiles 128 fp32": lambda: tiles(128, 128, (32, 8), 8, local=True, spans=True, exact=True),
    "top_k short 2k": lambda: (short_kernel, short_constants(2048) | {"HAS_LIMITS": False}, TOP_K),
    "top_k short 16k": lambda: (short_kernel, short_constants(16384) | {"HAS_LIMITS": True}, TOP_K),
    "top_k first": lambda: (digit_kernel, long_constants(64) | {"FIRST": True, "HAS_LIMITS": True}, TOP_K),
    "top_k digit": lambda: (digit_kernel, long_constants(64) | {"FIRST": False, "HAS_LIMITS": False}, TOP_K),
    "top_k write": lambda: (write_kernel, long_constants(64), TOP_K),
    "score 128 tokens": lambda: score(128, 4, 64, "max", active=True),
    "score 128 bounds": lambda: score(256, 4, 1, "max"),
    "score 64 every head": lambda: score(64, 8, 64, "none"),
    "score 256 gemma-2": lambda: score(256, 2, 64, "mean", softcap=True),
    "score 64 mqa": lambda: score(64, 71, 64, "max"),
    "score mla": lambda: score(576, 128, 64, "none"),
    "score 128 fp32": lambda: score(128, 4, 64, "max", exact=True),
    "score 256 fp32 bounds": lambda: score(256, 4, 8, "max", exact=True, narrower=True),
    "listed 128 units": lambda: listed(128, 4, 16, active=True),
    "listed 128 tokens": lambda: listed(128, 4, 1),
    "listed 256 gemma-2": lambda: listed(256, 2, 16, softcap=True),
    "listed 64 mqa": lambda: listed(64, 71, 64),
    "listed mla": lambda: listed(576, 128, 16),
    "listed 128 fp32": lambda: listed(128, 4, 16, exact=True),
    "margin 128": lambda: margin(128, 4),
    "margin 64": lambda: margin(64, 8),
    "margin 256": lambda: margin(256, 2, rows=32),
    "margin mla": lambda: margin(576, 128),
    "margin 128 fp32": lambda: margin(128, 4, exact=True),
    "normalise 128": lambda: last(normalise_kernel, 128, 4),
    "normalise 256 gemma-2": lambda: last(normalise_kernel, 256, 2, softcap=True),
    "normalise mla": lambda: last(normalise_kernel, 576, 128),
    "normalise 128 fp32": lambda: last(normalise_kernel, 128, 4, exact=True),
    "last sums 64": lambda: last(sum_kernel, 64, 8),
    "last sums 128": lambda: last(sum_kernel, 128, 4),
    "last sums 128 few rows": lambda: last(sum_kernel, 128, 4, rows=16),
    "last sums 256 gemma-2": lambda: last(sum_kernel, 256, 2, softcap=True),
    "last sums mla": lambda: last(sum_kernel, 576, 128),
    "last sums 128 fp32": lambda: last(sum_kernel, 128, 4, exact=True),
    "antidiagonal 64": lambda: antidiagonal(64, 8, 8),
    "antidiagonal 128": lambda: antidiagonal(128, 4, 8),
    "antidiagonal 128 odd": lambda: antidiagonal(128, 4, 6),
    "antidiagonal 256 gemma-2": lambda: antidiagonal(256, 2, 64, softcap=True),
    "antidiagonal mla": lambda: antidiagonal(576, 128, 8),
    "antidiagonal 128 fp32": lambda: antidiagonal(128, 4, 8, exact=True),
    "summary 128": lambda: (summarise_kernel, summary_constants(128, 64, bounds=True, mean=True), PROBE),
    "summary mla": lambda: (summarise_kernel, summary_constants(576, 64, bounds=True, mean=True), PROBE),
}


def compile_variant(kernel: Any, constants: dict[str, Any], dtypes: dict[str, str]) -> dict[str, Any]:
    options = {name: constants.pop(name) for name in ("num_warps", "num_stages") if name in constants}
    exact = constants.get("PRECISION") != "tf32" and "PRECISION" in constants
    signature, attrs, values = {}, {}, {}
    for i, name in enumerate(kernel.arg_names):
        if name in constants or UNIT_STRIDES.match(name):
            signature[name] = "constexpr"
            values[name] = constants.get(name, 1)
            continue
        if name in dtypes:
            signature[name] = "*" + dtypes[name]
        elif name in HALF:
            signature[name] = "*fp32" if exact else "*bf16"
        elif name in INT32 or name in FP32:
            signature[name] = "*i32" if name in INT32 else "*fp32"
        else:
            signature[name] = "fp32" if name in ("scale", "softcap") else "i32"
        if signature[name] not in ("fp32",) and name not in ("window", "num_parts"):
            attrs[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, values, attrs)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    sass = compiled.asm["sass"]
    return {
        **resources(compiled.asm["cubin"]),
        "shared": compiled.metadata.shared,
        "spill": len(re.findall(r"\b(?:LDL|STL)\b", sass)),
        "mma": "wgmma" if "HGMMA" in sass else "mma" if "HMMA" in sass else "-",
        "async16": len(re.findall(r"LDGSTS\.E\.\S*128", sass)),
        "warps": options.get("num_warps", 4),
    }


def resources(cubin: bytes) -> dict[str, int]:
    tool = pathlib.Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        report = subprocess.run(
            [tool, "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    return {key.lower(): int(re.findall(rf"\b{key}:(\d+)", report)[-1]) for key in ("REG", "STACK", "LOCAL")}


def main(names: list[str]) -> None:
    for name in names or VARIANTS:
        print(json.dumps({"variant": name, **compile_variant(*VARIANTS[name]())}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
