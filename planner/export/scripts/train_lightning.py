"""Train plan.json with Lightning: python train.py fit --config config.yaml.

Written by `budgetplan export`. It is yours to change; it needs budgetplan and
lightning[pytorch-extra]. Every value can be given as an option, such as --data.data photos/ and
--model.weights FILE.
"""

from __future__ import annotations

from lightning.pytorch.cli import LightningCLI

from planner.export.lightning import PlanData, PlanModule


def main() -> None:
    """Run Lightning's command line on the plan's classes."""
    LightningCLI(PlanModule, PlanData, subclass_mode_model=True, subclass_mode_data=True)


if __name__ == "__main__":
    main()
