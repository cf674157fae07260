"""Programs that ``budgetplan export`` copies beside a plan. Each reads ``plan.json``."""
