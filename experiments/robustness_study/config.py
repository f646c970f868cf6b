"""What the robustness study does: plants, networks, training methods, attacks and faults."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

NETWORKS = {
    "mlp": "MLP",
    "matched": "MLP, capacity matched",
    "spectral": "spectral norm",
    "lbdn": "LBDN",
    "converted": "LBDN from the MLP",
}
TRAININGS = {
    "": "PPO alone",
    "noise": "PPO with errors drawn uniformly from the ball",
    "mad": "PPO against a per-step adversary",
    "plan": "PPO against an adversary that plans through the plant",
    "caps": "PPO with the CAPS penalty",
    "sa": "PPO with the SA regulariser",
    "game": "PPO, then gradients through the plant against an adversary",
}
_SHORT = {
    "noise": "noise",
    "mad": "MAD adv.",
    "plan": "plant adv.",
    "caps": "CAPS",
    "sa": "SA",
    "game": "game",
}
# Names of `robustnn.closedloop.perturbation_from_config`, with titles. The worst case is taken over all of them.
ATTACKS = {
    "uniform": "uniform in the ball",
    "mad": "MAD",
    "critic": "critic",
    "robust-sarsa": "robust Sarsa",
    "snooping-mad": "snooping",
    "trajectory-paper": "trajectory, as published",
    "trajectory-strongest": "trajectory, strongest",
}
# Of some policies only.
LEARNED = "learned-adversary"


class Method(NamedTuple):
    """One way to a policy.

    Attributes:
        network: Key of `NETWORKS`.
        lipschitz: Bound of a spectral-norm MLP or LBDN, action per scaled (or normalised) observation.
        training: Key of `TRAININGS`.
        normalised: Whether observations are normalised by running statistics (`VecNormalize`), as in the published
            study, instead of divided by fixed scales.
        steps: Environment steps of PPO, as a multiple of the task's.
    """

    network: str = "mlp"
    lipschitz: float | None = None
    training: str = ""
    normalised: bool = False
    steps: float = 1.0

    @property
    def label(self) -> str:
        """Name in tables and figures."""
        bound = "" if self.lipschitz is None else f" γ={self.lipschitz:g}"
        norm = " (normalised)" if self.normalised else ""
        more = f" + {_SHORT[self.training]}" if self.training else ""
        steps = "" if self.steps == 1.0 else f", {self.steps:g}× steps"
        return f"{NETWORKS[self.network]}{bound}{norm}{more}{steps}"

    @property
    def key(self) -> str:
        """Name in file names."""
        parts = [self.network]
        parts += [] if self.lipschitz is None else [f"{self.lipschitz:g}"]
        parts += ["normalised"] * self.normalised
        parts += [self.training] * bool(self.training)
        parts += [] if self.steps == 1.0 else [f"x{self.steps:g}"]
        return "-".join(parts)


@dataclass(frozen=True)
class Config:
    """Settings of one run.

    Attributes:
        plant: Name of a plant of `robustnn.envs`.
        parameters: Parameters of the plant other than its defaults.
        methods: What is compared; the first one is the plain MLP.
        recipe: Index of the method that is recommended.
        controls: Indices of the methods that it has to beat.
        twins: Indices of the methods trained in the same way without a bound.
        claimed_from: Smallest size of the perturbation at which it has to.
        training_seeds: One policy per method and seed.
        episodes: Episodes per policy and condition, the same start states for all.
        eps: Sizes of the perturbation of the raw observation, l2 in units of `attack_scale`.
        attacks: Keys of `ATTACKS`, for all methods.
        more_attacks: Further ones, for the recipe, the controls and the twins.
        attack_settings: Parameters of attacks other than their defaults, by name.
        attack_scale: One number per observation component; None for ones.
        faults: Configurations of faults by title.
        equilibrium: State and action about which loops are linearised; None for no such analysis.
        learned: Indices of the methods that a learned adversary attacks, at the sizes `learned_eps`, for as many
            training seeds as `learned_seeds` says.
        learned_eps: See `learned`.
        learned_seeds: See `learned`.
        learned_steps: Environment steps of a learned adversary.
        observation_scale: What counts as one in each observation component, in its unit, for fixed scales.
        rollout_eps: Size of the errors that noise and adversaries add in the rollouts of PPO.
        timesteps: Environment steps of PPO.
        ppo: Arguments of PPO.
        num_envs: Copies of the plant in training.
        reward_scale: Factor of the reward in training.
        hidden: Hidden widths of the policies.
        value_hidden: Hidden widths of the value networks.
        caps: Parameters of the CAPS penalty.
        sa: Parameters of the SA regulariser.
        adversary: Parameters of the adversaries in the rollouts.
        game: Parameters of the training through the plant.
    """

    plant: str
    methods: tuple[Method, ...]
    eps: tuple[float, ...]
    rollout_eps: float
    timesteps: int
    ppo: dict[str, Any]
    observation_scale: tuple[float, ...]
    recipe: int
    controls: tuple[int, ...]
    twins: tuple[int, ...]
    claimed_from: float
    parameters: dict[str, float] = field(default_factory=dict)
    training_seeds: tuple[int, ...] = tuple(range(10))
    episodes: int = 64
    attacks: tuple[str, ...] = ("uniform", "mad", "trajectory-strongest")
    more_attacks: tuple[str, ...] = ("critic", "robust-sarsa", "snooping-mad", "trajectory-paper")
    attack_settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    attack_scale: tuple[float, ...] | None = None
    faults: dict[str, dict[str, Any]] = field(default_factory=dict)
    equilibrium: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    learned: tuple[int, ...] = ()
    learned_eps: tuple[float, ...] = ()
    learned_seeds: int = 3
    learned_steps: int = 400_000
    num_envs: int = 512
    reward_scale: float = 1.0
    hidden: tuple[int, ...] = (32, 32, 32)
    value_hidden: tuple[int, ...] = (64, 64)
    caps: dict[str, Any] = field(default_factory=dict)
    sa: dict[str, Any] = field(default_factory=dict)
    adversary: dict[str, Any] = field(default_factory=dict)
    game: dict[str, Any] = field(default_factory=dict)

    def attacks_on(self, method: Method) -> tuple[str, ...]:
        """All attacks on a method."""
        compared = [self.methods[k] for k in (self.recipe, *self.controls, *self.twins)]
        return self.attacks + (self.more_attacks if method in compared else ())

    @property
    def bounded(self) -> tuple[Method, ...]:
        """The LBDN methods with PPO alone, which tell the effect of the bound by itself."""
        return tuple(m for m in self.methods if m.network == "lbdn" and not m.training and m.steps == 1.0)

    @staticmethod
    def of(values: dict[str, Any]) -> Config:
        """Return the configuration that a run folder has stored as JSON values."""
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        if fields["equilibrium"] is not None:
            fields["equilibrium"] = tuple(tuple(part) for part in fields["equilibrium"])
        fields["methods"] = tuple(Method(*method) for method in values["methods"])
        return Config(**fields)
