"""`published_peak`: how many floating-point operations a second a card can do, as its maker publishes it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

import torch
from torch.nn.parameter import is_lazy

_TERA = 1e12

PEAKS: dict[str, dict[str, float]] = {
    # https://www.nvidia.com/en-us/data-center/hgx/ (a card's share of eight)
    "B200": {"bf16": 2250, "fp16": 2250, "tf32": 1125, "fp32": 75},
    # https://www.nvidia.com/en-us/data-center/h200/
    "H200 NVL": {"bf16": 835.5, "fp16": 835.5, "tf32": 417.5, "fp32": 60},
    "H200": {"bf16": 989.5, "fp16": 989.5, "tf32": 494.5, "fp32": 67},
    # https://www.nvidia.com/en-us/data-center/h100/ and its datasheet; HBM3 is the SXM card
    "H100 80GB HBM3": {"bf16": 989.5, "fp16": 989.5, "tf32": 494.5, "fp32": 67},
    "H100 NVL": {"bf16": 835.5, "fp16": 835.5, "tf32": 417.5, "fp32": 60},
    "H100 PCIe": {"bf16": 756.5, "fp16": 756.5, "tf32": 378, "fp32": 51},
    # https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/a100/pdf/nvidia-a100-datasheet-us-nvidia-1758950-r4-web.pdf
    "A100": {"bf16": 312, "fp16": 312, "tf32": 156, "fp32": 19.5},
    # https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/a10/pdf/a10-datasheet.pdf
    "A10": {"bf16": 125, "fp16": 125, "tf32": 62.5, "fp32": 31.2},
    # https://images.nvidia.com/content/Solutions/data-center/a40/nvidia-a40-datasheet.pdf
    "A40": {"bf16": 149.7, "fp16": 149.7, "tf32": 74.8, "fp32": 37.4},
    # https://www.nvidia.com/en-us/data-center/l4/ and /l40s/
    "L4": {"bf16": 121, "fp16": 121, "tf32": 60, "fp32": 30.3},
    "L40S": {"bf16": 362, "fp16": 362, "tf32": 183, "fp32": 91.6},
    # https://images.nvidia.com/content/technologies/volta/pdf/volta-v100-datasheet-update-us-1165301-r5.pdf
    "V100-SXM2": {"fp16": 125, "fp32": 15.7},
    "V100-PCIE": {"fp16": 112, "fp32": 14},
    # https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/tesla-t4/t4-tensor-core-datasheet-951643.pdf
    "T4": {"fp16": 65, "fp32": 8.1},
}
"""Peaks in 10¹² operations a second, by a part of the name that torch gives the card; the first that fits is taken.

They are those of dense products (half of what a datasheet says with sparsity) that are summed in 32 bits, on tensor
cores but for `fp32`.
"""

_PART = r"\bMIG\b|\bGRID\b|-\d+[A-Z]$"
"""What the name of a part of a card has in it: a MIG instance, or a virtual card such as `NVIDIA A40-8Q`."""


def published_peak(name: str, dtype: str) -> float | None:
    """Return the published peak of a card, `None` where it is not known, or where it is only a part of a card.

    Args:
        name: As torch names the card.
        dtype: What the products are taken in: `"bf16"`, `"fp16"`, `"tf32"`, `"fp32"`.
    """
    if re.search(_PART, name):
        return None
    for card, peaks in PEAKS.items():
        if re.search(rf"(?<!\w){re.escape(card)}(?!\w)", name):
            return peaks[dtype] * _TERA if dtype in peaks else None
    return None


def product_dtype(precision: str, parameters: Iterable[torch.Tensor]) -> str:
    """Return what most products of a step are taken in: as `precision` says, else as most of the network is stored.

    Args:
        precision: `RunConfig.precision`.
        parameters: Those of the network.
    """
    if precision != "fp32":
        return precision.removesuffix("-mixed")
    sizes: Counter[torch.dtype] = Counter()
    for parameter in parameters:
        sizes[parameter.dtype] += 0 if is_lazy(parameter) else parameter.numel()
    ((dtype, _),) = sizes.most_common(1) or [(torch.float64, 0)]
    if dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest":
        return "tf32"
    return {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}.get(dtype, "")
