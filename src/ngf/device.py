"""Where tensors live and in which precision networks run."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from ngf import launch

if TYPE_CHECKING:
    import torch

MAX_ISA = "ONEDNN_MAX_CPU_ISA"  # oneDNN's own: the instructions that it may use at most


def pick() -> torch.device:
    """The GPU where there is one, else the CPU: the same command runs on both.

    Of several processes on a machine each takes a GPU of its own.
    """
    import torch

    if not torch.cuda.is_available():
        return torch.device("cpu")
    torch.cuda.set_device(launch.local_rank() % torch.cuda.device_count())
    return torch.device("cuda", torch.cuda.current_device())


def deterministic(seed: int) -> torch.device:
    """Seed everything, ask torch for reproducible kernels, and return the device.

    The same seed gives the same bytes on one kind of CPU with one number of threads. So it mostly
    does on processors of two kinds that have bf16, where MAX_ISA holds them to what they share
    (AVX512_CORE_BF16: 25 victims of 30 on an AMD EPYC and an Intel Xeon with AMX). On a GPU torch
    keeps that promise only where a deterministic kernel exists (it warns where not), and two models
    of GPU differ in any case.
    """
    import os

    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else cuBLAS may differ
    torch.manual_seed(seed)
    # What `use_deterministic_algorithms` does, but for telling torch's compiler, whose import takes
    # seconds: `compiled` does that.
    torch.set_deterministic_debug_mode("warn")
    # Else every new tensor is filled first, for those who read what they never wrote: a tenth of
    # a narrow network's time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    return pick()


def compiled(net: torch.nn.Module) -> torch.nn.Module:
    """The network by `torch.compile`, whose compiler learns of what `deterministic` asked."""
    import torch

    if torch.get_deterministic_debug_mode():
        torch.use_deterministic_algorithms(True, warn_only=True)
    return torch.compile(net)  # type: ignore[return-value]


def native_bf16(device: torch.device) -> bool:
    """Whether bfloat16 products are computed in hardware and not emulated."""
    import torch

    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def autocast(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """bf16 autocast where the processor has it, else full precision."""
    import torch

    if not native_bf16(device):
        return contextlib.nullcontext()
    return torch.autocast(device.type, torch.bfloat16)
