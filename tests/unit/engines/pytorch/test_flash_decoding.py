"""The Triton kernel without a GPU: its results in Triton's interpreter, and its machine code.

The interpreter must be chosen before Triton is imported. So it runs in another process.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[4]
CODE = """
import json
import torch
from torch.nn import functional as F
from whispercore.engines.pytorch import flash_decoding

torch.manual_seed(0)
errors = []
for processors in (1, 8):  # one part of the keys for each head, and several
    flash_decoding._processors = lambda device: processors
    for heads, length, size, block, dtype in CASES:
        cache = torch.randn(2, 3, 5, heads, length, size).to(getattr(torch, dtype))  # layers, 2, windows, as in cache.Cache
        query = torch.randn(4, 1, heads, size).to(cache.dtype).transpose(1, 2)  # the layout of CrossBlock.cross_query
        key, value = cache[1, :2, :4].unbind(0)
        attended = flash_decoding.OneQueryAttention(block, 4)(query, key, value)
        assert attended.shape == query.shape and attended.dtype == query.dtype
        expected = F.scaled_dot_product_attention(query.float(), key.float(), value.float())
        errors.append(float((attended.float() - expected).norm() / expected.norm()))
print(json.dumps(errors))
"""
CASES = [
    (2, 1500, 64, 64, "float32"),
    (2, 1500, 64, 128, "float16"),
    (3, 70, 16, 32, "float32"),  # the last block has 6 positions
    (1, 20, 64, 64, "bfloat16"),  # fewer positions than a block
    (20, 512, 64, 32, "float32"),
]
LIMITS = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 1e-2}


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="no Triton: pip install -r requirements-test.txt")
def test_one_query_attends_as_pytorchs_attention() -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT / "src")}
    code = CODE.replace("CASES", repr(CASES))
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert ran.returncode == 0, ran.stderr
    errors = json.loads(ran.stdout)
    limits = [LIMITS[dtype] for *_, dtype in CASES] * 2
    assert all(error < limit for error, limit in zip(errors, limits, strict=True)), errors


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="no Triton: pip install -r requirements-test.txt")
@pytest.mark.parametrize("capability", [75, 80, 90])
@pytest.mark.parametrize("parts", [1, 4])
def test_the_kernels_compile_for_a_gpu(capability: int, parts: int, tmp_path: Path) -> None:
    """Without a GPU, down to its machine code. No register may be spilled into memory, which would cost more than the kernel gains."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from whispercore.engines.pytorch import flash_decoding

    for kernel in (flash_decoding._attend_part, flash_decoding._add_parts):
        pointers = {"query": "*fp16", "key": "*fp16", "value": "*fp16", "attended": "*fp16", "sums": "*fp32", "scale": "fp32"}
        signature = {name: "constexpr" if name.isupper() else pointers.get(name, "i32") for name in kernel.arg_names}
        constants = {name: value for name, value in {"SIZE": 64, "BLOCK": 64, "PARTS": parts}.items() if name in signature}
        # as at a call: tensors begin at, and their strides are, multiples of 16
        even = [
            n
            for n, name in enumerate(signature)
            if signature[name].startswith("*") or name.startswith(("query_", "key_", "value_", "per_"))
        ]
        source = ASTSource(kernel, signature, constexprs=constants, attrs={(n,): [["tt.divisibility", 16]] for n in even})
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32))
        (tmp_path / "cubin").write_bytes(compiled.asm["cubin"])
        shown = subprocess.run(
            [triton.knobs.nvidia.cuobjdump.path, "-res-usage", "cubin"], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        assert re.search(r"REG:\d+ STACK:0 .*LOCAL:0", shown.stdout), shown.stdout
