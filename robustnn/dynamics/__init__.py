"""Dynamics models from input-output data."""

from __future__ import annotations

from robustnn.dynamics.benchmarks import BENCHMARKS as BENCHMARKS
from robustnn.dynamics.benchmarks import Benchmark as Benchmark
from robustnn.dynamics.benchmarks import load_benchmark as load_benchmark
from robustnn.dynamics.data import Dataset as Dataset
from robustnn.dynamics.data import Experiment as Experiment
from robustnn.dynamics.data import Scaling as Scaling
from robustnn.dynamics.linear import LinearStateSpace as LinearStateSpace
from robustnn.dynamics.linear import stable_projection as stable_projection
from robustnn.dynamics.linear import subspace as subspace
from robustnn.dynamics.metrics import fit_index as fit_index
from robustnn.dynamics.metrics import nrmse as nrmse
from robustnn.dynamics.metrics import r_squared as r_squared
from robustnn.dynamics.metrics import rmse as rmse
from robustnn.dynamics.readers import from_csv as from_csv
from robustnn.dynamics.readers import from_env as from_env
from robustnn.dynamics.readers import from_mat as from_mat
