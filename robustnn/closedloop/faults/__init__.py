r"""Faults of sensors and actuators: seeded, vectorised, composable, and the same for observations and actions.

A fault is a frozen description of what happens to one signal $s_t$ of n components. As a `Perturbation` it acts on the
observations; `FaultSet` puts several of them on observations and actions of one loop, and
`FaultyEnv` does the same to any gymnasium environment. Every component has its own random numbers,
and every episode its own generator, so one seed gives one trajectory, whatever the batch and the device.

==================  ==========================================================================================
`white`             $s_t + \sigma w_t$, $w_t \sim N(0, I)$
`coloured`          $s_t + n_t$, $n_t = a n_{t-1} + \sqrt{1 - a^2}\,\sigma w_t$, $a = e^{-1/\tau}$, stationary
`bias`              $s_t + b$
`drift`             $s_t + t\,r$ (ramp) or $s_t + \sum_{i \le t} r\,w_i$ (walk)
`dropout`           with a probability the last value that arrived (hold), or zero
`stuck`             from a random moment on the value of that moment
`quantisation`      $q\,\mathrm{round}(s_t / q)$
`outliers`          with a probability $s_t \pm$ size
`delay`             $s_{t-k}$, before that the first value, or zero
`jitter`            $s_{t-k_t}$ with $k_t$ uniform on 0 ... k, and before that the first value
`gain`              $g\,s_t$, g uniform on an interval, drawn once per episode
==================  ==========================================================================================

Sizes are numbers for all components or one per component, in the unit of the signal; times are in sampling times.
"""

from robustnn.closedloop.faults.channel import Channel as Channel
from robustnn.closedloop.faults.channel import Fault as Fault
from robustnn.closedloop.faults.fault_set import FaultSet as FaultSet
from robustnn.closedloop.faults.gym_wrapper import FaultyEnv as FaultyEnv
from robustnn.closedloop.faults.loss import Dropout as Dropout
from robustnn.closedloop.faults.loss import Gain as Gain
from robustnn.closedloop.faults.loss import Jitter as Jitter
from robustnn.closedloop.faults.loss import SignalDelay as SignalDelay
from robustnn.closedloop.faults.loss import Stuck as Stuck
from robustnn.closedloop.faults.noise import Bias as Bias
from robustnn.closedloop.faults.noise import ColouredNoise as ColouredNoise
from robustnn.closedloop.faults.noise import Drift as Drift
from robustnn.closedloop.faults.noise import Outliers as Outliers
from robustnn.closedloop.faults.noise import Quantisation as Quantisation
from robustnn.closedloop.faults.noise import WhiteNoise as WhiteNoise
from robustnn.closedloop.faults.registry import FAULTS as FAULTS
from robustnn.closedloop.faults.registry import fault_from_config as fault_from_config
