"""The command line of robustnn: train, evaluate, attack, certify and export policies, fit and simulate dynamics models.

Only load policies from people whom you trust: the zip files of Stable-Baselines3 hold pickled objects, which can run
any code. Files of dynamics models hold none.
"""

from robustnn.cli.entry import main as main
