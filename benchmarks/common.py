"""What all benchmarks report of the machine they ran on."""

from __future__ import annotations

import os
import platform
from typing import Any

import numpy as np
import stable_baselines3
import torch


def machine() -> dict[str, Any]:
    """Describe the machine and the versions, without naming the machine."""
    return {
        "cpus": os.cpu_count(),
        "processor": platform.machine(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch_threads": torch.get_num_threads(),
        "load_average_1min": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "stable_baselines3": stable_baselines3.__version__,
    }
