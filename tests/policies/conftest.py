"""A deployed policy in a folder, with the model and the normalisation that it was made from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from stable_baselines3 import SAC
from stable_baselines3.common.vec_env import VecNormalize

from robustnn.policies import LBDNSACPolicy, save_deployed
from tests.policies.deployable import WIDE, frozen, make, vec_env_of
from tests.policies.toy import ASYMMETRIC


@pytest.fixture
def norm() -> VecNormalize:
    return frozen(vec_env_of(WIDE, ASYMMETRIC))


@pytest.fixture
def model(norm: VecNormalize) -> Any:
    return make(SAC, LBDNSACPolicy, norm, policy_kwargs={"net_arch": [4, 3]})


@pytest.fixture
def folder(model: Any, norm: VecNormalize, tmp_path: Path) -> Path:
    save_deployed(model, tmp_path / "controller", norm)
    return tmp_path / "controller"
