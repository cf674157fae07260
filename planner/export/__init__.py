"""Plans in the form that other training programs take (``budgetplan export``).

    targets         the targets by name, and the files of each
    settings        the plan's values as arguments of the Trainer, of Lightning and of timm's script
    hf              Trainer, callback and data set for Hugging Face's transformers
    lightning       module, data and callback for Lightning
    budget_watch    compares the memory of a running training with its plan
    scripts/        the exported programs, copied as they are

transformers and lightning are optional: they are imported by ``hf`` and ``lightning`` alone.
"""
