"""A Lipschitz-bounded regressor with the conventions of scikit-learn, which is not needed to use it."""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from robustnn.dynamics.static_fit import Schedule, train_regression
from robustnn.errors import ShapeError, check_finite, check_positive, check_positive_int, invalid
from robustnn.nn.lbdn import LBDN
from robustnn.nn.scales import as_scale

__all__ = ["LipschitzRegressor"]

Array = NDArray[np.float64]
Self = TypeVar("Self", bound="LipschitzRegressor")
Scales = Sequence[float] | Array | str | None


class LipschitzRegressor:
    r"""Regression of static maps and one-step models by an LBDN, with a guaranteed constant in the user's units.

    $$\|\mathrm{predict}(x) - \mathrm{predict}(x')\|_2 \le L\, \|x - x'\|_2 \quad\text{for all } x, x',$$

    where L is `lipschitz_`, up to the rounding of the outputs in float64. Offsets and the scaling used in training
    are part of the network, so L needs no conversion. With `input_scale` or `output_scale` the norms are those of
    $x / D_x$ and $y / D_y$. Give them where channels have different units: a plain norm is dominated by the inputs that
    vary most, and a network that must respond to the others within such a norm trains badly.

    The constructor only stores its arguments; `fit` checks them.

    Args:
        hidden: Widths of the hidden layers.
        lipschitz: The bound L, in output units per input unit; None to train it with the network, unpenalised, and
            have it reported.
        activation: Name or torch.nn class, one of `robustnn.params.activations.ACTIVATIONS`.
        steps: Largest number of optimiser steps.
        batch_size: Samples of a step.
        learning_rate: Adam's, at the start; it falls to zero along a cosine.
        validation_fraction: Share of the samples, drawn at random, that is held out; the best weights on them are
            kept. 0 for none: the last weights are kept.
        patience: Share of `steps` without a better validation error after which training stops.
        input_scale: D_x: a positive number for each input, in its units; "std" for the standard deviations of the
            training data; None for ones.
        output_scale: D_y, in the same way.
        random_state: Seed of the initial weights, the split and the batches; None for a random one.

    Attributes:
        network_: The LBDN from x - x_offset_ to y - y_offset_, in the user's units, float64.
        lipschitz_: The guaranteed bound L of `predict`, in the norms of the scales if there are any.
        lipschitz_raw_: A bound between plain l2 norms in the user's units, L max(D_y) / min(D_x); L without scales.
        x_offset_: Shape (n_in,), in the units of the inputs.
        y_offset_: Shape (n_out,), in the units of the outputs.
        input_scale_: D_x, shape (n_in,).
        output_scale_: D_y, shape (n_out,).
        n_features_in_: Number of inputs n_in.
        n_outputs_: Number of outputs n_out.
        n_iter_: Number of optimiser steps taken.
        history_: Mean squared error on the held-out samples (without any: on the last batch) at each of the checks,
            with every output over its standard deviation.

    Example:
        >>> x = np.linspace(-1, 1, 200)[:, None]
        >>> model = LipschitzRegressor((16,), lipschitz=2.0, steps=100).fit(x, np.sin(6 * x[:, 0]))
        >>> model.predict(x).shape, model.lipschitz_
        ((200,), 2.0)
    """

    _estimator_type = "regressor"

    def __init__(
        self,
        hidden: Sequence[int] = (32, 32),
        lipschitz: float | None = None,
        *,
        activation: str | type[torch.nn.Module] = "relu",
        steps: int = 2000,
        batch_size: int = 128,
        learning_rate: float = 0.01,
        validation_fraction: float = 0.1,
        patience: float = 0.3,
        input_scale: Scales = None,
        output_scale: Scales = None,
        random_state: int | None = 0,
    ) -> None:
        self.hidden = hidden
        self.lipschitz = lipschitz
        self.activation = activation
        self.steps = steps
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.validation_fraction = validation_fraction
        self.patience = patience
        self.input_scale = input_scale
        self.output_scale = output_scale
        self.random_state = random_state

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the arguments of the constructor.

        Args:
            deep: Of no effect: no argument is an estimator.
        """
        return {name: getattr(self, name) for name in _parameters(type(self))}

    def set_params(self: Self, **params: Any) -> Self:
        """Change arguments of the constructor; they take effect at the next `fit`.

        Args:
            **params: New values by name.

        Raises:
            InvalidArgumentError: If a name is unknown; nothing is changed then.
        """
        known = _parameters(type(self))
        unknown = [name for name in params if name not in known]
        if unknown:
            raise invalid("params", f"names among {', '.join(known)}", unknown, "Correct the names.")
        for name, value in params.items():
            setattr(self, name, value)
        return self

    def fit(self: Self, X: ArrayLike, y: ArrayLike) -> Self:  # noqa: N803
        """Fit the network to samples.

        Args:
            X: Inputs, shape (n, n_in), in the user's units.
            y: Outputs, shape (n,) or (n, n_out), in the user's units.

        Returns:
            The regressor.

        Raises:
            ShapeError: If X is no matrix, or the lengths differ or are below two.
            NonFiniteError: If a sample is NaN or infinite.
            InvalidArgumentError: If an argument of the constructor is not acceptable.
        """
        inputs, outputs = _matrix("X", X), _outputs(y)
        if len(inputs) != len(outputs) or len(inputs) < 2:
            raise ShapeError(
                f"X, y: expected as many inputs as outputs, at least two, got {len(inputs)} and {len(outputs)} "
                "samples. Give one row of X for each value of y."
            )
        schedule = Schedule(
            self.steps, self.batch_size, self.learning_rate, self.validation_fraction, self.patience
        )
        d_x = _scale("input_scale", self.input_scale, inputs)
        d_y = _scale("output_scale", self.output_scale, outputs)
        bound = None if self.lipschitz is None else check_positive("lipschitz", self.lipschitz)
        seed = _seed(self.random_state)
        x_offset, y_offset = inputs.mean(axis=0), outputs.mean(axis=0)
        x, target = inputs - x_offset, outputs - y_offset
        # Powers of two near the size of the data, in which the network trains and which convert it without rounding.
        c_x, c_y = _power_of_two(x / d_x), _power_of_two(target / d_y)
        unit = np.array([_power_of_two(column[:, None]) for column in target.T])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = LBDN(
                x.shape[1], self.hidden, target.shape[1],
                lipschitz=_start(x / d_x / c_x, target / d_y / c_y) if bound is None else bound * (c_x / c_y),
                activation=self.activation, trainable_lipschitz=bound is None,
                input_scale=torch.from_numpy(c_x * d_x), output_scale=torch.from_numpy(c_y * d_y / unit),
                dtype=torch.float64,
            )  # fmt: skip
        std = target.std(axis=0) / unit
        history, steps = train_regression(
            network,
            torch.from_numpy(x),
            torch.from_numpy(target / unit),
            torch.from_numpy(np.where(std > 0.0, std, 1.0)),
            schedule,
            seed,
        )
        self.network_ = _in_units(network, torch.from_numpy(unit))
        self.lipschitz_ = self.network_.lipschitz * (c_y / c_x) if bound is None else bound
        self.lipschitz_raw_ = _raw_bound(self.lipschitz_, d_x, d_y)
        self.x_offset_, self.y_offset_ = x_offset, y_offset
        self.input_scale_, self.output_scale_ = d_x, d_y
        self.n_features_in_, self.n_outputs_ = x.shape[1], target.shape[1]
        self.n_iter_, self.history_ = steps, history
        self._flat = np.asarray(y).ndim == 1
        return self

    def predict(self, X: ArrayLike) -> Array:  # noqa: N803
        """Return the outputs of the network, evaluated in float64.

        Args:
            X: Inputs, shape (n, n_in), in the user's units.

        Returns:
            Shape (n,) if `fit` was given such outputs, otherwise (n, n_out), in the user's units.

        Raises:
            InvalidArgumentError: If the regressor is not fitted.
            ShapeError: If the number of inputs is another one.
            NonFiniteError: If an input is NaN or infinite.
        """
        self._check_fitted()
        inputs = _matrix("X", X)
        if inputs.shape[1] != self.n_features_in_:
            raise ShapeError(
                f"X: expected {self.n_features_in_} inputs as in fit, got {inputs.shape[1]}. Give the same columns."
            )
        with torch.no_grad():
            result: Array = self.network_(torch.from_numpy(inputs - self.x_offset_)).numpy() + self.y_offset_
        return result[:, 0] if self._flat else result

    def score(self, X: ArrayLike, y: ArrayLike) -> float:  # noqa: N803
        """Return the coefficient of determination R^2 of the predictions, the mean over the outputs.

        Args:
            X: Inputs, shape (n, n_in).
            y: Outputs, shape (n,) or (n, n_out).

        Returns:
            1 for perfect predictions, 0 for the mean of y; of an output that is constant in y 1 if it is met
            exactly, otherwise 0.

        Raises:
            ShapeError: If the shapes do not fit.
            InvalidArgumentError: If the regressor is not fitted.
        """
        predicted, measured = _outputs(self.predict(X)), _outputs(y)
        if predicted.shape != measured.shape:
            raise ShapeError(
                f"y: expected shape {predicted.shape}, got {measured.shape}. One row per sample."
            )
        error = np.square(measured - predicted).sum(axis=0)
        total = np.square(measured - measured.mean(axis=0)).sum(axis=0)
        varies = total > 0.0
        r_squared = np.where(varies, 1.0 - error / np.where(varies, total, 1.0), error == 0.0)
        return float(r_squared.mean())

    def __repr__(self) -> str:
        """Name the arguments that are not the defaults."""
        defaults = _parameters(type(self))
        given = [f"{k}={v!r}" for k, v in self.get_params().items() if repr(v) != repr(defaults[k])]
        return f"{type(self).__name__}({', '.join(given)})"

    def __sklearn_tags__(self) -> Any:
        """Describe the regressor to scikit-learn, which alone asks for it and is loaded when it does."""
        utils = sys.modules["sklearn.utils"]
        return utils.Tags(
            estimator_type="regressor",
            target_tags=utils.TargetTags(required=True, multi_output=True),
            transformer_tags=None,
            classifier_tags=None,
            regressor_tags=utils.RegressorTags(),
        )

    def _check_fitted(self) -> None:
        if not hasattr(self, "network_"):
            raise invalid("regressor", "a fitted one", "one without weights", "Call fit(X, y) first.")


def _parameters(cls: type) -> dict[str, Any]:
    """Arguments of the constructor with their defaults."""
    signature = inspect.signature(cls.__init__)  # type: ignore[misc]
    return {name: one.default for name, one in signature.parameters.items() if name != "self"}


def _matrix(name: str, values: ArrayLike) -> Array:
    try:
        given = np.asarray(values)
        if given.dtype.kind not in "biufO":
            raise TypeError(f"dtype {given.dtype}")
        array = np.array(given, dtype=np.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise invalid(
            name, "real numbers", f"{type(values).__name__} ({error})", "Convert them with numpy."
        ) from error
    if array.ndim != 2 or array.shape[1] == 0:
        raise ShapeError(
            f"{name}: expected shape (n, channels), got {array.shape}. Reshape one channel with [:, None]."
        )
    check_finite(name, array)
    return array


def _outputs(y: ArrayLike) -> Array:
    array = np.asarray(y)
    return _matrix("y", array[:, None] if array.ndim == 1 else array)


def _scale(name: str, given: Scales, samples: Array) -> Array:
    n = samples.shape[1]
    if given is None:
        return np.ones(n)
    if isinstance(given, str):
        if given != "std":
            raise invalid(name, '"std", positive numbers or None', repr(given), 'Pass "std".')
        std = samples.std(axis=0)
        if not (std > 0.0).all():
            raise invalid(name, "channels that vary", f"standard deviations {std.tolist()}", "Give numbers.")
        return np.asarray(std)
    scale = as_scale(name, torch.as_tensor(np.asarray(given, dtype=np.float64)), n, None, torch.float64)
    if scale.ndim != 1:
        raise ShapeError(f"{name}: expected {n} numbers, got shape {tuple(scale.shape)}. One per channel.")
    return np.asarray(scale.numpy())


def _power_of_two(samples: Array) -> float:
    """The power of two next to the root of the mean variance of the channels; one if nothing varies."""
    with np.errstate(over="ignore"):
        size = math.sqrt(float(samples.var(axis=0).mean()))
    if not math.isfinite(size):
        raise invalid(
            "X, y", "samples of finite variance", f"magnitudes up to {np.abs(samples).max():.3g}",
            "Give them in larger units.",
        )  # fmt: skip
    return 2.0 ** round(math.log2(size)) if size > 0.0 else 1.0


def _raw_bound(bound: float, d_x: Array, d_y: Array) -> float:
    """The bound between plain norms, rounded upwards."""
    ratio = float(d_y.max()) / float(d_x.min())
    return bound if ratio == 1.0 else bound * ratio * (1.0 + 2.0**-51)


def _in_units(network: LBDN, unit: Tensor) -> LBDN:
    """The network times `unit`, (n_out,), with a fixed bound in the norm that is divided by it."""
    params = network.direct()
    last = params.layers[-1]
    assert params.output_scale is not None and last.bias is not None
    with torch.no_grad():
        params = params._replace(
            layers=(*params.layers[:-1], last._replace(bias=last.bias * unit)),
            output_scale=params.output_scale * unit,
            lipschitz=network.lipschitz,
        )
    return LBDN.from_direct(params, network.activation)


def _start(x: Array, y: Array) -> float:
    """Where the training of the bound starts: twice the gain of the linear model, at least two."""
    gain = np.linalg.lstsq(x, y, rcond=None)[0]
    return 2.0 * max(1.0, float(np.linalg.norm(gain, 2)))


def _seed(random_state: int | None) -> int:
    if random_state is None:
        return int(np.random.default_rng().integers(2**31))
    return check_positive_int("random_state", random_state, minimum=0)
