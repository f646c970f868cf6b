"""The command line of robustnn: train, evaluate, attack, certify and export policies of Stable-Baselines3.

Only load models from people whom you trust: the zip files of Stable-Baselines3 hold pickled objects, which can run
any code.
"""

from robustnn.cli.entry import main as main
