"""A deployed policy in a folder: ONNX model, certificate and description, checked from the files alone.

====================================  ===================================================================
policy.onnx                           the function, from the flat raw observation to the action
certificate.json, .safetensors        the proved bound of the network inside (`robustnn.bounds.Certificate`)
policy.json                           spaces, normalisation, the bound of the whole, digests of the others
====================================  ===================================================================

A digest finds damage, and proves nothing, since anybody can compute it. What is checked besides: the certificate
is proved anew for the weights inside the ONNX model, the model is compared node by node and number by number
with the one that the description and these weights give, and the bound is composed anew.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from robustnn.bounds import Certificate
from robustnn.errors import (
    CertificateError,
    CheckpointError,
    InvalidArgumentError,
    UnsupportedSpaceError,
    invalid,
)
from robustnn.files import atomic_write_bytes, atomic_write_text
from robustnn.policies.bound import Bound
from robustnn.policies.deploy import deploy
from robustnn.policies.deploy_images import DeployedImagePolicy
from robustnn.policies.deploy_onnx import onnx_bytes, read_network, same_graph
from robustnn.policies.deployed import DeployedPolicy, Proof
from robustnn.policies.normalization import Normalization
from robustnn.policies.pipeline import Pipeline, has_two_scores, in_two_parts
from robustnn.policies.space_json import space_from_json, space_to_json

__all__ = ["load_deployed", "save_deployed", "verify_deployed"]

_HEADER = {"format": "robustnn deployed policy", "version": 1}
_CERTIFICATE = "certificate"
_FILES = ("policy.onnx", "certificate.json", "certificate.safetensors")
_DESCRIPTION = "policy.json"


def save_deployed(
    policy: Any, folder: str | os.PathLike[str], vec_env: VecEnv | None = None, *, search: bool = False
) -> Bound:
    """Write a policy as an ONNX model with a certificate of exactly the weights inside it.

    The files are written to a hidden folder beside the target, checked there as `verify_deployed` does, and take
    its place in one step; an earlier deployment stays as it was until then. Only a process that is killed between
    the two renamings that replace an earlier deployment leaves it under a hidden name, `.NAME.*.old`.

    Args:
        policy: A `DeployedPolicy`, or anything that `deploy` accepts.
        folder: The folder to write; new, empty, or one that this function wrote. Missing parents are made.
        vec_env: As for `deploy`; None for a `DeployedPolicy`.
        search: Whether to search for a tighter certificate; see `DeployedPolicy.certificate`.

    Returns:
        The bound from raw observation to action.

    Raises:
        InvalidArgumentError: If the folder holds something else, or the policy cannot be deployed or was changed
            besides its weights.
        CertificateError: If the weights have no certificate.
        CheckpointError: If the ONNX model does not reproduce the policy.
        UnsupportedSpaceError: If it is a policy of images.
        RobustNNError: If onnx or safetensors is not installed.
        OSError: If the folder cannot be written.

    Example:
        >>> save_deployed(model, "controller", model.get_env())  # doctest: +SKIP
    """
    if not isinstance(policy, DeployedPolicy):
        policy = deploy(policy, vec_env)
    elif vec_env is not None:
        raise invalid("vec_env", "None for a deployed policy", "an environment", "Pass it to deploy().")
    if isinstance(policy, DeployedImagePolicy):
        raise UnsupportedSpaceError(
            "policy: expected one of vectors for a folder with a certificate, got one of images. Use "
            "deploy(model).to_onnx(path) for the model, and deploy(model).certificate() for the proof."
        )
    deployed = _canonical(policy)
    target = Path(folder).resolve()
    _check_target(target)
    data = onnx_bytes(deployed)
    # What is certified is what is shipped: the weights come back out of the file.
    network = read_network(data, deployed.explicit().activation)
    shipped = DeployedPolicy(network, deployed.pipeline, deployed.proof)
    certificate = shipped.certificate(search=search)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(6)}.tmp")
    temporary.mkdir()
    try:
        certificate.save(temporary / _CERTIFICATE)
        atomic_write_bytes(temporary / "policy.onnx", data)
        content = _described(shipped, certificate, _digests(temporary))
        atomic_write_text(temporary / _DESCRIPTION, json.dumps(content, indent=2, allow_nan=False) + "\n")
        bound = verify_deployed(temporary)
        _put_in_place(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return bound


def verify_deployed(folder: str | os.PathLike[str]) -> Bound:
    """Check a folder that `save_deployed` wrote, from its files alone.

    Args:
        folder: The folder.

    Returns:
        The bound from raw observation to action, composed anew from the proved certificate.

    Raises:
        CheckpointError: If a file is missing, damaged, changed, or was not written by `save_deployed`.
        CertificateError: If the certificate is not one of the weights inside the ONNX model, does not prove its
            bound, or the description states another one.
        RobustNNError: If onnx or safetensors is not installed.
    """
    return _read(Path(folder))[1]


def load_deployed(folder: str | os.PathLike[str]) -> DeployedPolicy:
    """Read a deployed policy, after checking it as `verify_deployed` does.

    Args:
        folder: The folder.

    Returns:
        The module, with the weights and constants of the ONNX model to the last bit.

    Raises:
        CheckpointError: If a file is missing, damaged, changed, or was not written by `save_deployed`.
        CertificateError: If the certificate does not prove what is stated.
        RobustNNError: If onnx or safetensors is not installed.

    Example:
        >>> load_deployed("controller")(observation)  # doctest: +SKIP
    """
    return _read(Path(folder))[0]


def _canonical(policy: DeployedPolicy) -> DeployedPolicy:
    """The policy anew in float32 on the CPU, after checking that only weights differ from what it was made as."""
    deployed = DeployedPolicy(policy.explicit(), policy.pipeline, policy.proof)
    held = {name: buffer.detach().cpu().float() for name, buffer in policy.named_buffers()}
    expected = dict(deployed.named_buffers())
    changed = [
        n
        for n in {**held, **expected}
        if n not in held or n not in expected or not torch.equal(held[n], expected[n])
    ]
    if changed:
        raise invalid(
            "policy", "the constants that it was deployed with", f"others in {', '.join(changed)}",
            "Deploy the policy anew with the statistics and spaces that it has now.",
        )  # fmt: skip
    return deployed


def _check_target(target: Path) -> None:
    known = {*_FILES, _DESCRIPTION}
    if target.exists() and (not target.is_dir() or any(path.name not in known for path in target.iterdir())):
        raise invalid(
            "folder", "a new or empty folder, or one that save_deployed wrote", str(target),
            "The whole folder would be replaced; choose another one.",
        )  # fmt: skip


def _put_in_place(temporary: Path, target: Path) -> None:
    old = target.with_name(f".{target.name}.{secrets.token_hex(6)}.old")
    try:
        if target.exists():
            os.rename(target, old)
        os.rename(temporary, target)
    finally:
        if old.exists() and not target.exists():
            os.rename(old, target)
        shutil.rmtree(old, ignore_errors=True)


def _digests(folder: Path) -> dict[str, str]:
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in _FILES}


def _described(
    deployed: DeployedPolicy, certificate: Certificate, digests: Mapping[str, str]
) -> dict[str, Any]:
    """The whole content of policy.json."""
    pipeline = deployed.pipeline
    norm = pipeline.normalization
    content = {
        **_HEADER,
        "files_sha256": dict(digests),
        "observation_space": space_to_json(pipeline.observation_space),
        "action_space": space_to_json(pipeline.action_space),
        "components": list(pipeline.names),
        "frames": pipeline.frames,
        "normalization": None if norm is None else {
            "mean": norm.mean.tolist(),
            "std": norm.std.tolist(),
            "clip": [v if math.isfinite(v) else None for v in torch.as_tensor(norm.clip).expand_as(norm.std).tolist()],
        },
        "output": pipeline.output,
        "mean_clip": pipeline.mean_clip,
        "squash": pipeline.squash,
        "notes": list(pipeline.notes),
        "bound": deployed.bound(certificate).to_dict(),
    }  # fmt: skip
    return {**content, "sha256": _digest(content)}


def _digest(content: Mapping[str, Any]) -> str:
    fields = {key: value for key, value in content.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def _read(folder: Path) -> tuple[DeployedPolicy, Bound]:
    try:
        content = json.loads((folder / _DESCRIPTION).read_text(encoding="utf-8"))
        data = (folder / "policy.onnx").read_bytes()
        digests = _digests(folder)
    except (OSError, ValueError, RecursionError) as error:
        raise _refused(folder, f"readable files {_DESCRIPTION}, {', '.join(_FILES)}", error) from error
    if not isinstance(content, dict) or any(content.get(key) != value for key, value in _HEADER.items()):
        raise _refused(
            folder, f"{_HEADER['format']}, version {_HEADER['version']}", f"another {_DESCRIPTION}"
        )
    if content.get("sha256") != _digest(content):
        raise _refused(folder, f"the {_DESCRIPTION} that was written", "a changed one")
    if content.get("files_sha256") != digests:
        raise _refused(folder, "the files that belong together", f"others than {_DESCRIPTION} names")
    certificate = Certificate.load(folder / _CERTIFICATE)
    try:
        network = read_network(data, certificate.activation)
        certificate.verify(network)
        scales = (certificate.input_scale, certificate.output_scale)
        if any(scale.ndim != 1 for scale in scales):
            raise _refused(folder, "a certificate with diagonal scales", "one with matrices")
        deployed = DeployedPolicy(
            network, _pipeline(content, network.out_features), Proof(*scales, certificate.multipliers)
        )
        same = same_graph(data, deployed)
        expected = json.loads(json.dumps(_described(deployed, certificate, digests)))
    except (InvalidArgumentError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise _refused(folder, "a policy", error) from error
    if not same:
        raise _refused(folder, f"the ONNX model that {_DESCRIPTION} describes", "another one")
    different = sorted(key for key in {**expected, **content} if expected.get(key) != content.get(key))
    if different:
        raise CertificateError(
            f"{_DESCRIPTION}: expected what the certificate and the ONNX model give, got other values of "
            f"{', '.join(different)}. Deploy the policy anew: save_deployed(policy, folder)."
        )
    return deployed, Bound.from_dict(content["bound"])


def _pipeline(content: Mapping[str, Any], n_out: int) -> Pipeline:
    clip = content["mean_clip"]
    action_space = space_from_json(content["action_space"])
    return Pipeline(
        space_from_json(content["observation_space"]),
        action_space,
        str(content["output"]),
        _normalization(content["normalization"]),
        bool(content["squash"]),
        None if clip is None else float(clip),
        int(content["frames"]),
        tuple(str(name) for name in content["components"]),
        tuple(str(note) for note in content["notes"]),
        paired=has_two_scores(action_space, n_out),
    )


def _normalization(content: Mapping[str, Any] | None) -> Normalization | None:
    if content is None:
        return None
    mean, std, clip = (_vector(content[key]) for key in ("mean", "std", "clip"))
    parts = in_two_parts(mean)
    shipped = (parts[0].double() + parts[1].double(), std.float().double(), clip.float().double())
    if not all(torch.equal(*pair) for pair in zip((mean, std, clip), shipped, strict=True)):
        raise ValueError("statistics that are none of the ONNX model")
    return Normalization(mean, std, clip)


def _vector(values: list[float | None]) -> Tensor:
    return torch.tensor([math.inf if v is None else float(v) for v in values], dtype=torch.float64)


def _refused(folder: Path, expected: str, got: object) -> CheckpointError:
    return CheckpointError(
        f"{folder.name}: expected {expected}, got {got}. The folder is damaged, was changed, or was not written by "
        "save_deployed; deploy the policy anew."
    )
