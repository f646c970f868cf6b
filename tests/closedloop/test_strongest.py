from __future__ import annotations

import numpy as np
import pytest
import torch

from robustnn.closedloop import (
    EvaluationResult,
    MaximalActionDifference,
    TrajectoryAttack,
    UniformBall,
    evaluate,
)
from robustnn.closedloop.strongest import strongest
from robustnn.errors import InvalidArgumentError
from tests.closedloop.plants import LinearPlant, curved_policy


def result(returns, name="a", seeds=None, lengths=None):
    returns = np.array(returns, dtype=float)
    lengths = np.ones(returns.shape, dtype=int) if lengths is None else np.array(lengths)
    return EvaluationResult(
        returns, lengths, np.arange(returns.shape[-1]) if seeds is None else np.array(seeds), {"name": name}
    )


def test_single_policy_by_hand():
    worst = strongest(
        [result([-1, -9, -3], "a", lengths=[1, 2, 3]), result([-5, -5, -2], "b", lengths=[4, 5, 6])]
    )
    assert worst.per_episode.returns.tolist() == [-5, -9, -3]
    assert worst.per_episode.lengths.tolist() == [4, 2, 3]
    assert worst.episode_winner.tolist() == [1, 0, 0]
    assert worst.policy_winner == 0 and worst.per_policy.returns.tolist() == [-1, -9, -3]
    assert {name: float(share) for name, share in worst.shares().items()} == {"a": 2 / 3, "b": 1 / 3}
    assert worst.per_policy.perturbation["of"]["b"] == {"name": "b"}


def test_every_policy_of_a_stack_has_its_own_winner():
    a = result([[-1.0, -2.0], [-8.0, -1.0]], "a")
    b = result([[-3.0, -1.0], [-2.0, -3.0]], "b")
    worst = strongest({"first": a, "second": b})
    assert worst.attacks == ("first", "second")
    assert worst.policy_winner.tolist() == [1, 0]
    assert worst.per_policy.returns.tolist() == [[-3, -1], [-8, -1]]
    assert worst.per_episode.returns.tolist() == [[-3, -2], [-8, -3]]
    assert worst.shares()["second"].tolist() == [0.5, 0.5]


def test_it_is_at_least_as_damaging_as_any_and_can_be_written(tmp_path):
    attacks = (UniformBall(0.2), MaximalActionDifference(0.2), TrajectoryAttack(0.2, horizon=4, iterations=3))
    plant = LinearPlant()
    results = [evaluate(curved_policy, plant, attack, episodes=8, dtype=torch.float64) for attack in attacks]
    worst = strongest(results)
    for single in results:
        assert (worst.per_episode.returns <= single.returns).all()
        assert worst.per_policy.mean <= single.mean
    assert worst.per_episode.mean <= worst.per_policy.mean
    assert worst.per_episode.terminated is not None
    alone = strongest(results[:1])
    np.testing.assert_array_equal(alone.per_episode.returns, results[0].returns)
    worst.per_episode.to_csv(tmp_path / "worst.csv")
    again = EvaluationResult.from_csv(tmp_path / "worst.csv")
    np.testing.assert_array_equal(again.returns, worst.per_episode.returns)
    assert again.perturbation == worst.per_episode.perturbation


def test_equal_names_are_numbered_and_the_first_of_equals_wins():
    worst = strongest([result([-1.0]), result([-1.0]), result([-1.0])])
    assert worst.attacks == ("a", "a 2", "a 3") and worst.episode_winner.tolist() == [0]


@pytest.mark.parametrize(
    ("results", "words"),
    [
        ([], "at least one"),
        ([3], "at least one"),
        ([result([-1, -2]), result([-1, -2], "b", seeds=[0, 2])], "seeds"),
        ([result([-1, -2]), result([-1, -2], "b", seeds=[1, 0])], "seeds"),
        ([result([-1, -2]), result([-1], "b")], "seeds"),
        ([result([-1, -2]), result([[-1, -2]], "b")], "shape"),
        ([result([-1, np.nan])], "finite"),
    ],
)
def test_what_cannot_be_compared_is_refused(results, words):
    with pytest.raises(InvalidArgumentError, match=words):
        strongest(results)
