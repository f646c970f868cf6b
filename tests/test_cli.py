from __future__ import annotations

import importlib
import json
import shutil
import sys
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from stable_baselines3 import PPO

from robustnn import __version__
from robustnn.cli import main
from robustnn.cli.models import load_model
from robustnn.cli.names import ALGORITHMS, algorithm_class, policy_class
from robustnn.cli.options import read_config
from robustnn.cli.perturbations import NOTHING, attack_conditions, conditions
from robustnn.cli.returns import strongest
from robustnn.cli.train import setup_from
from robustnn.closedloop import MaximalActionDifference, evaluate
from robustnn.envs import Pendulum
from robustnn.errors import InvalidArgumentError
from robustnn.nn.export import load_network
from robustnn.policies import action_map, load_deployed, policy_bound
from robustnn.report.files import read_csv

ROOT = Path(__file__).resolve().parents[1]
PENDULUM = "robustnn/PendulumSwingUp-v0"
CONFIG: dict[str, Any] = {
    "algo": "ppo",
    "env": PENDULUM,
    "policy": "lbdn",
    "policy_kwargs": {"lipschitz": 5.0, "observation_scale": [1.0, 1.0, 8.0], "net_arch": [8]},
    "n_timesteps": 64,
    "n_envs": 4,
    "n_steps": 16,
    "batch_size": 32,
}
CARTPOLE: dict[str, Any] = {
    "algo": "DQN",
    "env": "CartPole-v1",
    "policy_kwargs": "dict(lipschitz=50.0, net_arch=[8])",
    "n_timesteps": 120,
    "learning_starts": 50,
    "buffer_size": 200,
    "learning_rate": "lin_0.001",
    "normalize": True,
}


def run(*arguments: str | Path) -> int:
    return main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folders "pendulum", of two seeds, and "cartpole", with statistics."""
    folder = tmp_path_factory.mktemp("trained")
    for name, config, seeds in (("pendulum", CONFIG, "0,1"), ("cartpole", CARTPOLE, "3")):
        (folder / f"{name}.json").write_text(json.dumps(config))
        assert run("train", folder / f"{name}.json", "--out", folder / name, "--seed", seeds) == 0
    return folder


@pytest.fixture
def model(trained: Path) -> Path:
    return trained / "pendulum" / "seed=0" / "model.zip"


@pytest.fixture
def cartpole(trained: Path) -> Path:
    return trained / "cartpole" / "seed=3" / "model.zip"


def test_train_writes_models_and_goes_on_with_what_is_left(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained / "pendulum", tmp_path / "pendulum")
    first, second = (tmp_path / "pendulum" / f"seed={seed}" / "model.zip" for seed in (0, 1))
    before, other = first.stat().st_mtime_ns, dict(PPO.load(second).policy.named_parameters())
    (tmp_path / "pendulum" / "cells" / "seed=1.json").unlink()
    second.unlink()
    arguments = ["train", trained / "pendulum.json", "--out", tmp_path / "pendulum", "--seed"]
    assert run(*arguments, "0,1") == 0
    assert first.stat().st_mtime_ns == before
    again = dict(PPO.load(second).policy.named_parameters())
    assert all(torch.equal(value, again[key]) for key, value in other.items())
    assert "seed=1/model.zip: 64 steps" in capsys.readouterr().out
    assert run(*arguments, "0") == 2  # another run than the one in the folder
    assert "seeds" in capsys.readouterr().err
    assert (trained / "cartpole" / "seed=3" / "vecnormalize.pkl").exists()


@pytest.mark.parametrize(
    "path", sorted((ROOT / "experiments" / "hyperparams").glob("*.yml")), ids=lambda p: p.stem
)
def test_files_of_the_zoo_are_read(path: Path) -> None:
    pytest.importorskip("yaml")
    pytest.importorskip("sb3_contrib")
    content = read_config(path)
    for env in content:
        setup = setup_from(content, path.stem, "Pendulum-v1" if env == "default" else env)
        assert setup.algo == path.stem and setup.policy.startswith("robustnn.policies.")
        assert setup.n_timesteps == content[setup.env if setup.env in content else "default"]["n_timesteps"]


def test_yaml_is_read_and_its_absence_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("yaml")
    file = tmp_path / "a.yml"
    file.write_text("algo: ppo\nenv: Pendulum-v1\nn_timesteps: 1e5\npolicy_kwargs: {lipschitz: 2.0}\n")
    setup = setup_from(read_config(file))
    assert setup.n_timesteps == 100_000 and setup.policy_kwargs == {"lipschitz": 2.0}
    file.write_text("a: [")
    with pytest.raises(InvalidArgumentError, match="a readable YAML or JSON file"):
        read_config(file)
    monkeypatch.setitem(sys.modules, "yaml", None)
    assert run("train", file, "--out", tmp_path / "x") == 2


def test_evaluate_is_what_the_library_computes(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = [trained / "pendulum" / f"seed={seed}" / "model.zip" for seed in (0, 1)]
    what = [
        "--perturbation",
        "uniform:0.2",
        "delay:1",
        '{"name": "faults", "action": [{"name": "gain", "low": 0.5}]}',
    ]
    common = ["--env", PENDULUM, *what, "--episodes", "3", "--seed", "7", "--steps", "12", "--norm", "linf"]
    assert run("evaluate", *models, *common, "--out", tmp_path / "here") == 0
    lines = [line.split()[:2] for line in capsys.readouterr().out.splitlines()]
    assert ["uniform", "0.2"] in lines and ["delay", "steps"] in lines
    rows = read_csv(tmp_path / "here" / "returns.csv")
    assert len(rows) == 2 * 4 * 3 and {row["seed"] for row in rows} == {7, 8, 9}
    policy = action_map(PPO.load(models[1]))
    expected = evaluate(policy, Pendulum(), seeds=range(7, 10), steps=12)
    found = [row["return"] for row in rows if row["model"] == "seed=1" and row["perturbation"] == "none"]
    assert found == expected.returns.tolist()
    assert {json.loads(row["parameters"])["norm"] for row in rows if row["perturbation"] == "uniform"} == {
        "linf"
    }
    summary = json.loads((tmp_path / "here" / "summary.json").read_text())
    assert [entry["perturbation"].split()[0] for entry in summary] == ["none", "uniform", "delay", "faults"]
    assert summary[0]["mean"] == np.mean([row["return"] for row in rows if row["perturbation"] == "none"])
    assert (tmp_path / "here" / "figures" / "returns.png").stat().st_size > 1000
    # Resumed, and computed by worker processes, the tables are the same to the last byte.
    for cell in sorted((tmp_path / "here" / "cells").iterdir())[::2]:
        cell.unlink()
    written = {name: (tmp_path / "here" / name).read_bytes() for name in ("returns.csv", "summary.json")}
    assert run("evaluate", *models, *common, "--out", tmp_path / "here", "--workers", "1") == 0
    assert all((tmp_path / "here" / name).read_bytes() == data for name, data in written.items())
    assert run("evaluate", models[0], *common, "--out", tmp_path / "here") == 2
    assert "choose another name" in capsys.readouterr().err


def test_attack_reports_the_strongest(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--attacks", "mad,critic,trajectory", "--eps", "0.3,0.1", "--episodes", "2", "--steps", "6"]
    assert run("attack", model, "--env", PENDULUM, *arguments, "--out", tmp_path / "here") == 0
    summary = json.loads((tmp_path / "here" / "summary.json").read_text())
    means = {(entry["perturbation"], entry["size"]): entry["mean"] for entry in summary}
    assert list(means)[-2:] == [("strongest", 0.1), ("strongest", 0.3)] and len(means) == 9
    for size in (0.1, 0.3):
        names = ("mad", "critic", "trajectory")
        assert means["strongest", size] <= min(means[name, size] for name in names)
    rows = read_csv(tmp_path / "here" / "returns.csv")
    policy = action_map(PPO.load(model))
    attack = MaximalActionDifference(0.1)
    expected = evaluate(policy, Pendulum(), attack, episodes=2, steps=6)
    mad = [row["return"] for row in rows if row["perturbation"] == "mad" and row["size"] == 0.1]
    assert mad == expected.returns.tolist()
    assert "strongest" in capsys.readouterr().out


def test_the_strongest_may_use_any_smaller_attack_for_every_episode() -> None:
    chosen = attack_conditions(["mad", "critic"], [0.2, 0.1], "l2", None)
    assert [condition.title for condition in chosen] == [
        "none",
        "mad 0.1",
        "mad 0.2",
        "critic 0.1",
        "critic 0.2",
    ]
    scores = [
        np.array([row]) for row in ([0.0, -5.0], [-1.0, -2.0], [-3.0, -1.0], [-2.0, -1.0], [-1.0, -7.0])
    ]
    (small, at_small), (large, at_large) = strongest(chosen, scores)
    assert (small.size, large.size) == (0.1, 0.2)
    assert at_small.tolist() == [[-2.0, -5.0]] and at_large.tolist() == [[-3.0, -7.0]]


def test_any_gymnasium_environment_behind_its_statistics(
    cartpole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--env", "CartPole-v1", "--episodes", "3", "--steps", "20"]
    assert (
        run("attack", cartpole, *common, "--attacks", "margin,mad", "--eps", "0.2", "--out", tmp_path / "a")
        == 0
    )
    rows = read_csv(tmp_path / "a" / "returns.csv")
    moved = cartpole.with_name("vecnormalize.pkl")
    alone = tmp_path / "model.zip"
    shutil.copy(cartpole, alone)
    assert run("evaluate", alone, *common, "--vecnormalize", moved, "--out", tmp_path / "b") == 0
    nominal = [row["return"] for row in rows if row["perturbation"] == "none"]
    assert [row["return"] for row in read_csv(tmp_path / "b" / "returns.csv")] == nominal
    capsys.readouterr()
    assert (
        run("attack", cartpole, *common, "--attacks", "trajectory", "--eps", "0.2", "--out", tmp_path / "c")
        == 2
    )
    assert "gymnasium environments" in capsys.readouterr().err
    assert (
        run("attack", cartpole, *common, "--attacks", "robust-sarsa", "--eps", "0.2", "--out", tmp_path / "d")
        == 2
    )
    assert "needs no plant" in capsys.readouterr().err


def test_certify(model: Path, cartpole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "c.json"
    rate = ["--eps", "0,0.001,10", "--tolerance", "0.1", "--steps", "10"]
    assert run("certify", model, "--env", PENDULUM, *rate, "--out", out) == 0
    content = json.loads(out.read_text())
    assert content["bound"]["lipschitz"] == policy_bound(PPO.load(model)).lipschitz == 5.0
    assert content["rate"]["rate"][0] == 1.0 and content["rate"]["rate"][-1] < 1.0
    assert "by construction" in capsys.readouterr().out
    assert run("certify", model, "--method", "lipsdp", "--out", out) == 0
    assert json.loads(out.read_text())["bound"]["lipschitz"] < 5.0
    assert "no --env" in capsys.readouterr().out
    assert run("certify", cartpole, "--env", "CartPole-v1", "--eps", "0", "--steps", "5") == 0
    text = capsys.readouterr().out
    assert "VecNormalize" in text and "Q-values" in text
    assert cartpole.with_suffix(".certificate.json").exists()
    assert run("certify", cartpole) == 2  # statistics without an environment to put them on
    assert "the environment that the statistics" in capsys.readouterr().err


def test_export(model: Path, cartpole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("safetensors")
    assert run("export", model, "--env", PENDULUM, "--onnx", tmp_path / "controller") == 0
    observation = torch.randn(16, 3)
    expected = torch.from_numpy(PPO.load(model).predict(observation.numpy(), deterministic=True)[0])
    unit = torch.finfo(torch.float32).eps
    assert torch.allclose(
        load_deployed(tmp_path / "controller")(observation), expected, rtol=0.0, atol=64 * unit
    )
    assert run("export", model, "--safetensors", tmp_path / "net.safetensors") == 0
    output = load_network(tmp_path / "net.safetensors")(observation).clamp(-1.0, 1.0)
    assert torch.allclose(output, expected, rtol=0.0, atol=64 * unit)
    assert (tmp_path / "net.certificate.json").exists()
    assert run("export", cartpole, "--env", "CartPole-v1", "--onnx", tmp_path / "cart") == 0
    assert "VecNormalize" in capsys.readouterr().out


BAD = {
    "missing file": (["evaluate", "absent.zip", "--env", PENDULUM], "MODEL: expected a zip file"),
    "no zip": (["certify", "text.zip"], "MODEL: expected a zip file of Stable-Baselines3"),
    "foreign zip": (["certify", "foreign.zip"], "MODEL: expected a zip file of Stable-Baselines3"),
    "wrong algorithm": (["certify", "MODEL", "--algo", "sac"], "MODEL: expected a model of SAC"),
    "unknown algorithm": (["certify", "MODEL", "--algo", "alphago"], "algo: expected one of a2c"),
    "unknown env": (["evaluate", "MODEL", "--env", "robustnn/Absent-v0"], "env: expected an environment"),
    "wrong env": (["evaluate", "MODEL", "--env", "CartPole-v1"], "--env: expected the spaces"),
    "wrong env to certify": (["certify", "MODEL", "--env", "CartPole-v1"], "--env: expected the spaces"),
    "no env": (["attack", "MODEL", "--eps", "0.1"], "--env: expected an environment"),
    "negative eps": (["attack", "MODEL", "--env", PENDULUM, "--eps", "0.1,-0.1"], "--eps: expected a finite number"),
    "negative single eps": (["attack", "MODEL", "--env", PENDULUM, "--eps", "-0.1"], "--eps: expected"),
    "eps of zero": (["attack", "MODEL", "--env", PENDULUM, "--eps", "0"], "--eps: expected a size > 0"),
    "eps in words": (["attack", "MODEL", "--env", PENDULUM, "--eps", "much"], "--eps: expected numbers"),
    "unknown attack": (
        ["attack", "MODEL", "--env", PENDULUM, "--eps", "0.1", "--attacks", "laser"],
        "--attacks: expected names of mad, trajectory, critic",
    ),
    "unknown perturbation": (["evaluate", "MODEL", "--env", PENDULUM, "--perturbation", "fog:1"], "'fog'"),
    "perturbation without a size": (["evaluate", "MODEL", "--env", PENDULUM, "--perturbation", "white"], "a size"),
    "negative size": (["evaluate", "MODEL", "--env", PENDULUM, "--perturbation", "white:-1"], "size of white"),
    "half a step": (["evaluate", "MODEL", "--env", PENDULUM, "--perturbation", "delay:0.5"], "steps: expected"),
    "no JSON": (["evaluate", "MODEL", "--env", PENDULUM, "--perturbation", "{name"], "--perturbation: expected JSON"),
    "unknown parameter": (
        ["evaluate", "MODEL", "--env", PENDULUM, "--perturbation", '{"name": "white", "sigma": 1}'],
        r"perturbation 'white': expected parameters ['std",
    ),
    "wrong kind": (
        ["evaluate", "MODEL", "--env", PENDULUM, "--perturbation", '{"name": "white", "std": "x"}'],
        "std: expected a number",
    ),
    "wrong scale": (
        ["evaluate", "MODEL", "--env", PENDULUM, "--perturbation", "uniform:1", "--scale", "1,1"], "scale: expected 3"
    ),
    "no episodes": (["evaluate", "MODEL", "--env", PENDULUM, "--episodes", "0"], "--episodes"),
    "unknown device": (["evaluate", "MODEL", "--env", PENDULUM, "--device", "abacus"], "--device: expected a device"),
    "foreign statistics": (
        ["evaluate", "MODEL", "--env", PENDULUM, "--vecnormalize", "text.zip"], "--vecnormalize: expected"
    ),
    "no tolerance": (["certify", "MODEL", "--env", PENDULUM, "--eps", "0.1"], "tolerance: expected"),
    "missing config": (["train", "absent.json", "--out", "x"], "CONFIG: expected a readable YAML or JSON file"),
    "broken config": (["train", "text.json", "--out", "x"], "CONFIG: expected a readable YAML or JSON file"),
    "list as config": (["train", "list.json", "--out", "x"], "CONFIG: expected a mapping"),
    "config without env": (["train", "empty.json", "--out", "x", "--algo", "ppo"], "CONFIG: env: expected a name"),
    "unknown policy": (["train", "policy.json", "--out", "x"], "policy: expected the dotted name"),
    "unknown setting": (["train", "setting.json", "--out", "x"], "unexpected keyword argument 'n_step'"),
    "code in config": (["train", "code.json", "--out", "x"], "policy_kwargs: expected literals"),
    "no seed": (["train", "pendulum.json", "--out", "x", "--seed", "zero"], "--seed: expected integers"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_told_in_one_line(
    case: str,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.zip").write_text("no zip")
    Path("text.json").write_text("{")
    Path("list.json").write_text("[1]")
    Path("empty.json").write_text("{}")
    shutil.make_archive("foreign", "zip", tmp_path, "text.zip")
    Path("pendulum.json").write_text(json.dumps(CONFIG))
    changes: dict[str, dict[str, Any]] = {
        "policy": {"policy": "robustnn.policies.Absent"},
        "setting": {"n_step": 16},
        "code": {"policy_kwargs": "dict(lipschitz=__import__('os').getpid())"},
    }
    for name, change in changes.items():
        Path(f"{name}.json").write_text(json.dumps({**CONFIG, **change}))
    arguments, expected = BAD[case]
    assert run(*[str(model) if argument == "MODEL" else argument for argument in arguments]) == 2
    captured = capsys.readouterr()
    error = captured.err.splitlines()[-1]
    assert error.startswith("robustnn: error: ") and expected in error, captured.err
    assert "Traceback" not in captured.err
    if case != "wrong scale":  # found when the first cell is computed
        assert not Path("runs").exists() and not Path("x").exists()


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_the_algorithm_is_told_from_the_file(algo: str, tmp_path: Path) -> None:
    if algo in ("crossq", "maskableppo", "qrdqn", "tqc", "trpo"):
        pytest.importorskip("sb3_contrib")
    env = "CartPole-v1" if algo in ("dqn", "qrdqn", "maskableppo") else "Pendulum-v1"
    kind = algorithm_class(algo)
    for name, kwargs in (("lbdn", {"lipschitz": 5.0, "net_arch": [4]}), ("mlp", {"net_arch": [4]})):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = kind(policy_class(name, algo), gymnasium.make(env), policy_kwargs=kwargs, device="cpu")
        model.save(tmp_path / f"{name}.zip")
        loaded = load_model(tmp_path / f"{name}.zip")
        assert isinstance(loaded, kind) or algo == "ddpg"  # which has the entries of TD3
        assert type(loaded.policy) is type(model.policy)


def test_conditions_of_texts() -> None:
    found = conditions(["uniform:0.1,0.2", "none", "delay:2", "uniform:0.1"], "linf", (1.0, 2.0))
    assert found[0] == NOTHING and [condition.title for condition in found[1:]] == [
        "uniform 0.1", "uniform 0.2", "delay steps 2",
    ]  # fmt: skip
    assert found[1].config == {"name": "uniform", "eps": 0.1, "norm": "linf", "scale": [1.0, 2.0]}
    assert found[3].config == {"name": "delay", "steps": 2}
    assert len({condition.key for condition in found}) == len(found)
    assert asdict(found[1])["size"] == 0.1


@pytest.mark.parametrize("command", ["train", "evaluate", "attack", "certify", "export"])
def test_help_has_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        run(command, "--help")
    text = capsys.readouterr().out
    assert done.value.code == 0 and f"example:\n  robustnn {command} " in text


def test_version_and_entry_point(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run("--version")
    assert capsys.readouterr().out == f"robustnn {__version__}\n"
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert 'robustnn = "robustnn.cli:main"' in text
    assert importlib.import_module("robustnn.cli").main is main
    with pytest.raises(SystemExit) as done:
        run("levitate")
    assert done.value.code == 2
