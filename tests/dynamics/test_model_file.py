"""Model files: exact, and nothing that is damaged, edited or foreign is read."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from robustnn.dynamics import (
    Dataset,
    LipschitzNARX,
    LipschitzStateSpace,
    ResidualStateSpace,
    load_model,
    save_model,
)
from robustnn.dynamics import model_file as module
from robustnn.errors import CheckpointError, InvalidArgumentError, NonFiniteError

RNG = np.random.default_rng(0)
DATA = Dataset.from_arrays(
    RNG.normal(size=60) / 3.0, 1e-3 * RNG.normal(size=60), 1.0 / 3.0, u_names=["valve"], y_names=["Pegel"],
    u_units=["V"], y_units=["µm"],
)  # fmt: skip


def made() -> LipschitzStateSpace:
    model = LipschitzStateSpace(DATA, 2, (4,), lipschitz_x=0.1 + 0.2, output_hidden=(3,))
    model.start_(None, DATA, 1)
    return model


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return save_model(made(), tmp_path / "deep" / "er" / "model")


def test_all_is_kept_exactly(path: Path) -> None:
    model, loaded = made(), load_model(path)
    assert path.name == "model.npz" and isinstance(loaded, LipschitzStateSpace)
    assert loaded.lipschitz_x == 0.1 + 0.2 and loaded.dt == 1.0 / 3.0
    assert loaded.channels.to_dict() == model.channels.to_dict()
    assert loaded.channels.y_units == ("µm",)
    for (name, ours), (other, theirs) in zip(
        model.named_parameters(), loaded.named_parameters(), strict=True
    ):
        assert name == other and torch.equal(ours, theirs) and theirs.requires_grad
    u = DATA.experiments[0].u
    assert np.array_equal(model.simulate(u), loaded.simulate(u))


def test_to_load_draws_nothing_from_the_generator(path: Path) -> None:
    before = torch.get_rng_state()
    load_model(path)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_file_is_replaced_in_one_step(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = path.read_bytes()
    assert save_model(made(), path) == path
    monkeypatch.setattr("robustnn.files.os.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    other = made()
    with torch.no_grad():
        other.constant.add_(1.0)
    with pytest.raises(KeyboardInterrupt):
        save_model(other, path)
    assert torch.equal(load_model(path).constant, made().constant)
    assert len(first) > 0 and [one.name for one in path.parent.iterdir()] == [path.name]


def test_every_damaged_byte_range_and_every_cut_is_found(path: Path) -> None:
    content = path.read_bytes()
    reference = {name: value.clone() for name, value in load_model(path).named_parameters()}
    positions = np.random.default_rng(0).integers(0, len(content), 60)
    for position in positions:
        damaged = bytearray(content)
        damaged[position] ^= 0xFF
        path.write_bytes(bytes(damaged))
        try:  # padding of the archive and its time stamps mean nothing
            loaded = load_model(path)
        except CheckpointError:
            continue
        assert all(torch.equal(value, reference[name]) for name, value in loaded.named_parameters())
    for length in range(0, len(content) - 1, 97):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match="model.npz: expected"):
            load_model(path)


def rewrite(path: Path, change: Callable[[dict[str, Any], dict[str, Any]], None], *, sign: bool) -> None:
    """Change header and arrays; with a new digest if `sign`."""
    with np.load(path) as content:
        members = {name: np.array(content[name]) for name in content.files}
    header = json.loads(str(members.pop("header")))
    change(header, members)
    if sign:
        arrays = {name.removeprefix("parameter:"): array for name, array in members.items()}
        header["sha256"] = module._digest(header, arrays)
    np.savez(path, header=np.array(json.dumps(header)), **members)


EDITS: dict[str, Callable[[dict[str, Any], dict[str, Any]], None]] = {
    "bound": lambda header, _: header["settings"].update(lipschitz_x=0.2),
    "units": lambda header, _: header["channels"].update(y_units=["mm"]),
    "scale": lambda header, _: header["channels"]["scaling"].update(y_scale=[1.0]),
    "class": lambda header, _: header.update({"class": "residual"}),
    "value": lambda _, members: members["parameter:c"].__setitem__((0, 0), 1.0),
    "shape": lambda _, members: members.update({"parameter:c": members["parameter:c"].T}),
    "dtype": lambda _, members: members.update({"parameter:c": members["parameter:c"].astype(np.float32)}),
    "name": lambda _, members: members.update({"parameter:e": members.pop("parameter:c")}),
    "more": lambda _, members: members.update({"parameter:more": np.zeros(1)}),
    "fewer": lambda _, members: members.pop("parameter:c"),
    "not finite": lambda _, members: members["parameter:c"].__setitem__((0, 0), np.nan),
    "no number": lambda header, _: header["settings"].update(lipschitz_x="x"),
    "argument": lambda header, _: header["settings"].update(colour=1),
    "no class": lambda header, _: header.update({"class": "os.system"}),
    "no name": lambda header, _: header.update({"class": ["lipschitz"]}),
    "version": lambda header, _: header.update(version=2),
    "format": lambda header, _: header.update(format="robustnn fit 1"),
    "field": lambda header, _: header.pop("channels"),
    "channels": lambda header, _: header.update(channels=[1]),
    "no scale": lambda header, _: header["channels"]["scaling"].update(y_scale=[0.0]),
    "scale shape": lambda header, _: header["channels"]["scaling"].update(y_scale=[1.0, 1.0]),
    "list": lambda header, _: header.update(settings=[1]),
}
# With a digest to match, these are files that somebody could have written on purpose.
LEGITIMATE = {"bound", "units", "scale", "value"}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_file_is_refused(path: Path, edit: str) -> None:
    rewrite(path, EDITS[edit], sign=False)
    with pytest.raises(CheckpointError, match="model.npz: expected"):
        load_model(path)


@pytest.mark.parametrize("edit", EDITS)
def test_what_makes_no_model_is_refused_whatever_its_digest(path: Path, edit: str) -> None:
    rewrite(path, EDITS[edit], sign=True)
    if edit in LEGITIMATE:
        load_model(path)
        return
    with pytest.raises(CheckpointError, match="model.npz: expected"):
        load_model(path)


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit('executed')",))


def test_foreign_files_are_refused_and_nothing_is_executed(tmp_path: Path) -> None:
    target = tmp_path / "model.npz"
    array = io.BytesIO()
    np.save(array, np.array([Bomb()], dtype=object), allow_pickle=True)
    foreign = io.BytesIO()
    with zipfile.ZipFile(foreign, "w") as archive:
        archive.writestr("header.npy", array.getvalue())
    empty = io.BytesIO()
    with zipfile.ZipFile(empty, "w"):
        pass
    plain = io.BytesIO()
    np.savez(plain, x=np.zeros(3))
    single = io.BytesIO()
    np.save(single, np.zeros(3))
    texts = io.BytesIO()
    np.savez(texts, header=np.array("[" * 100_000))
    contents = [
        b"", b"hello", pickle.dumps(Bomb()), foreign.getvalue(), empty.getvalue(), plain.getvalue(), single.getvalue(),
        texts.getvalue(),
    ]  # fmt: skip
    for content in contents:
        target.write_bytes(content)
        with pytest.raises(CheckpointError, match="model.npz: expected"):
            load_model(target)
    with pytest.raises(CheckpointError, match="missing.npz"):
        load_model(tmp_path / "missing.npz")
    with pytest.raises(CheckpointError, match="expected"):
        load_model(tmp_path)


def test_what_cannot_be_saved(tmp_path: Path) -> None:
    class Own(ResidualStateSpace):
        pass

    with pytest.raises(InvalidArgumentError, match="Own"):
        save_model(Own(DATA, 2, (4,), lipschitz=0.1), tmp_path / "own")
    model = LipschitzNARX(DATA, 2, 2, (4,), lipschitz=1.0)
    with torch.no_grad():
        model.map.network.layers[0].bias.fill_(float("nan"))  # type: ignore[union-attr, operator]
    with pytest.raises(NonFiniteError, match="diverged"):
        save_model(model, tmp_path / "narx")
    assert not list(tmp_path.iterdir())


def test_the_digest_covers_names_shapes_and_dtypes() -> None:
    array = np.arange(4.0)
    header = {"a": 1}
    digests = [
        module._digest(header, one)
        for one in ({"x": array}, {"y": array}, {"x": array.reshape(2, 2)}, {"x": array.view(np.int64)}, {})
    ]
    digests.append(module._digest({"a": 2}, {"x": array}))
    assert len(set(digests)) == 6 and all(len(one) == hashlib.sha256().digest_size * 2 for one in digests)
